"""The config of a run: pydantic models, so a mistake is refused before anything is loaded, by the name of its key."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from recsys_emb.data.fingerprints import DEFAULT_BITS, MOST_BITS
from recsys_emb.data.parts import state_names
from recsys_emb.data.store import EncodedDataset, SplitBy, open_dataset
from recsys_emb.embeddings.base import BackendConfig, Role, backend_registry
from recsys_emb.embeddings.budget import backend_config
from recsys_emb.embeddings.growth import NewIds
from recsys_emb.embeddings.posttraining import posttraining_options
from recsys_emb.errors import UserError, settings_written_as
from recsys_emb.files import read_yaml
from recsys_emb.key_value import place
from recsys_emb.models.base import ModelConfig, model_registry
from recsys_emb.sizes import Budget, parse_budget
from recsys_emb.validation import explain


def _a_size(budget: Any) -> Any:
    if isinstance(budget, (int, float, str, Mapping)):  # before pydantic makes 1.0 of true
        return parse_budget(budget)
    return budget


GivenBudget = Annotated[Budget, BeforeValidator(_a_size)]
"""A budget of a YAML file; anything that is no size is refused when the file is read."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    """Which prepared dataset, and of one with appended parts which state and which rows."""

    path: Path = Field(description="a folder made by `recsys-emb data prepare`")
    state: str | None = Field(
        None,
        description="the last part that training knows, of those that `recsys-emb data append` added; base: none; "
        "absent: the latest",
    )
    split: SplitBy = Field(
        "own",
        description="own: valid and test as prepared, appended rows are for training; parts: train on all rows up to "
        "`state`, validate on the next part, test on the one after it",
    )
    recent: int | None = Field(None, ge=1, description="train on the last so many parts alone; absent: on all")

    def open(self, path: Path | None = None) -> EncodedDataset:
        """The dataset, where it is now or at ``path``; one there without the state is opened in its latest.

        Raises:
            UserError: there is no dataset, or no such state of it.
        """
        if path is not None and self.state is not None and self.state not in state_names(path):
            return open_dataset(path)
        return open_dataset(path or self.path, self.state, self.split, self.recent)


class EmbeddingConfig(_Section):
    """Which embedding method, and how much memory it may take when served."""

    backend: str = Field("full", description="one of `recsys-emb backends`")
    budget: GivenBudget = Field(
        None,
        description="a ratio such as 0.1, bytes such as 20MB, or {total: 20MB} with vocabularies and network; absent: "
        "unbounded",
    )
    init_std: float = Field(0.01, gt=0, description="standard deviation of a vector's initial values")
    options: SerializeAsAny[BackendConfig] = Field(
        default_factory=BackendConfig, description="the backend's own options"
    )

    @model_validator(mode="before")
    @classmethod
    def _typed_options(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        backend = backend_registry.get(str(data.get("backend", "full")))
        options = data.get("options") or {}
        if not isinstance(options, (Mapping, BackendConfig)):
            raise UserError(f"embedding.options: expected a mapping of options, got {options!r}")
        return {**data, "options": backend_config(backend, options)}


class TrainingConfig(_Section):
    """How to train; the defaults suit a first run on any dataset."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_name=False, extra="forbid", frozen=True)

    from_: Path | None = Field(
        None,
        alias="from",
        description="a finished run of the same model, on this or an earlier state of the dataset, whose weights "
        "training begins with; absent: new ones",
    )
    new_ids: NewIds = Field(
        "mean",
        description="own rows of ids that the run before did not know begin as: mean of the field's rows; oov, the row "
        "of unknown values; random, as in a new table",
    )
    keep_optimizer: bool = Field(True, description="after `from`: go on with the state that the optimizer had there")

    epochs: int = Field(20, ge=1, description="passes over the training split at most")
    max_steps: int | None = Field(None, ge=1, description="stop after so many batches")
    batch_size: int = Field(4096, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    lr_schedule: Literal["plateau", "linear"] = Field(
        "plateau",
        description="plateau: drops when the validation metric (AUC) gains no more, and then stops; linear: falls with "
        "every step, to zero at the end of all epochs (or max_steps), and does not stop before",
    )
    lr_scales: dict[Role, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="factor on the learning rate by kind of the embedding's parameters: weight, arch, threshold, scale",
    )
    lr_drop: float = Field(0.1, gt=0, le=1, description="factor on the learning rate at a plateau")
    eval_every: int | None = Field(None, ge=1, description="batches between evaluations; absent: every epoch")
    plateau: int = Field(1, ge=1, description="evaluations without a gain before the learning rate drops")
    patience: int = Field(1, ge=0, description="evaluations without a gain, after a drop, before training stops")
    min_delta: float = Field(1e-5, ge=0, description="least gain of the validation metric (AUC) that counts")
    precision: Literal["fp32", "tf32", "bf16", "auto"] = Field(
        "auto",
        description="of the dense part's products; tables stay fp32. tf32: of 10 bits on a card, fp32 on a CPU; "
        "auto: bf16 where it is native, else fp32",
    )
    embedding_optimizer: Literal["adam", "rowwise_adagrad", "sgd", "dense_adam"] = Field(
        "adam",
        description="adam: with catch-up of rows that batches skip; dense_adam: walks whole tables, for reference",
    )
    l2_embedding: float = Field(1e-5, ge=0, description="L2 on embedding vectors: gradient l2 * w")
    l2_by_count: float = Field(
        0.0,
        ge=0,
        description="beside it, L2 on the ids of a batch alone: gradient l2 * w / n, n how often the train split has "
        "the id (DIN's mini-batch aware regularisation)",
    )
    l2_dense: float = Field(0.0, ge=0, description="L2 on the other weights")
    max_grad_norm: float | None = Field(None, gt=0, description="clip the gradient norm of the other weights")


class FinetuneConfig(_Section):
    """How a compressed embedding and the network are trained on; codes and indexes stay."""

    epochs: int = Field(4, ge=1, description="passes over the training split")
    learning_rate: float = Field(3e-3, gt=0, description="at the start; it falls to zero")
    distil: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of the loss that is the distance to the uncompressed model's predictions; the rest is the "
        "labels'. Labels alone overfit within an epoch",
    )


class CompactConfig(_Section):
    """What becomes of the embedding after training."""

    method: str = Field(description="a post-training method of `recsys-emb backends`")
    budget: GivenBudget = Field(
        None, description="a ratio such as 0.02, bytes such as 20MB, or {total: 20MB} with vocabularies and network"
    )
    options: SerializeAsAny[BackendConfig] = Field(
        default_factory=BackendConfig, description="the method's own options"
    )
    finetune: FinetuneConfig | None = Field(None, description="train the compressed form on")
    vocabulary: Literal["exact", "fingerprint"] = Field(
        "exact", description="of the artifact: the raw values; or no values, a few bits of each value's hash"
    )
    fingerprint_bits: int = Field(
        DEFAULT_BITS, ge=1, le=MOST_BITS, description="f: 1 in 2^f unknown values is taken for a known one"
    )

    @model_validator(mode="before")
    @classmethod
    def _typed_options(cls, data: Any) -> Any:
        if not isinstance(data, Mapping) or "method" not in data:
            return data
        options = data.get("options") or {}
        if not isinstance(options, (Mapping, BackendConfig)):
            raise UserError(f"compact.options: expected a mapping of options, got {options!r}")
        with settings_written_as("compact.{}".format):
            _a_size(data.get("budget"))
            return {**data, "options": posttraining_options(str(data["method"]), options)}


class RunConfig(_Section):
    """One run."""

    task: Literal["ctr"] = Field("ctr", description="what is predicted; ctr: the probability of a click")
    data: DataConfig
    model: SerializeAsAny[ModelConfig]
    embedding: EmbeddingConfig = EmbeddingConfig()
    training: TrainingConfig = TrainingConfig()
    compact: CompactConfig | None = Field(None, description="make the trained embedding smaller, and train it on")
    seed: int = Field(1, ge=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def at_state_of(self, dataset: EncodedDataset) -> RunConfig:
        """The same run, and the state of its dataset by name, so that it stays the state when parts are appended."""
        return self.model_copy(update={"data": self.data.model_copy(update={"state": dataset.state})})

    @field_validator("model", mode="before")
    @classmethod
    def _typed_model(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        if "name" not in data:
            raise UserError(f"model.name: missing; allowed: {', '.join(model_registry.names())}")
        cls_ = model_registry.get(str(data["name"])).Config
        try:
            return cls_.model_validate(dict(data))
        except ValidationError as error:
            raise UserError(explain(error, cls_, prefix="model")) from None


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads a YAML file and applies ``a.b=value`` overrides, whose values are YAML too.

    Args:
        path: the file; None where the overrides say all.
        overrides: texts as ``--set`` takes them.

    Raises:
        UserError: unreadable file, unknown key, wrong type or impossible value, in one line.
    """
    keys = f"the keys {', '.join(RunConfig.model_fields)}"
    tree = {} if path is None else read_yaml(Path(path), "config", keys)
    for override in overrides:
        place(tree, override, "--set", "training.epochs=3", _value)
    return parse_config(tree, source="--set" if path is None else str(path))


def parse_config(tree: Mapping[str, Any], source: str = "config") -> RunConfig:
    """A RunConfig of nested mappings. Raises UserError in one line."""
    try:
        with settings_written_as(config_key):
            return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {explain(error, RunConfig)}") from None


def config_key(setting: str) -> str:
    """The key of a run's config that a setting of its embedding method stands under."""
    return f"embedding.{setting}"


def dump_config(config: RunConfig) -> str:
    """YAML that ``load_config`` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_options(texts: Sequence[str], option: str = "--option") -> dict[str, Any]:
    """``key=value`` texts of a command's option, values as in YAML. Raises UserError in one line."""
    tree: dict[str, Any] = {}
    for text in texts:
        place(tree, text, option, "min_count=3", _value)
    return tree


def parse_compact(
    method: str,
    budget: Budget,
    options: Mapping[str, Any],
    finetune: Mapping[str, Any],
    vocabulary: str = "exact",
    fingerprint_bits: int = DEFAULT_BITS,
) -> CompactConfig:
    """The ``compact`` section that a command's options describe. Raises UserError in one line."""
    tree = {"method": method, "budget": budget, "options": options, "finetune": finetune}
    tree |= {"vocabulary": vocabulary, "fingerprint_bits": fingerprint_bits}
    try:
        return CompactConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"--{explain(error, CompactConfig).replace('finetune.', 'finetune ', 1)}") from None


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError from None
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML 1.1 reads 1e-3 as a string
            value = float(value)
    return value
