"""Training that begins with the weights of a finished run, on the same or an earlier state of the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recsys_emb.config import RunConfig, config_key
from recsys_emb.data.encoding import Encoding
from recsys_emb.data.parts import state_names
from recsys_emb.data.store import EncodedDataset, open_dataset
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, backend_registry
from recsys_emb.embeddings.forms import Form
from recsys_emb.embeddings.growth import blocks_of, grown_rows, new_rows, tables_of, take_over
from recsys_emb.errors import UserError, settings_written_as
from recsys_emb.files import read_json
from recsys_emb.models.base import CTRModel
from recsys_emb.training.checkpoint import Checkpoints, load_model
from recsys_emb.training.run_dir import RunDir
from recsys_emb.training.stage_runner import stage_model
from recsys_emb.training.trainer import Trainer


@dataclass(frozen=True)
class WarmStart:
    """What a training begins with.

    Attributes:
        run: a finished run of the same model, whose method trains in one stage.
        config: of the training that begins.
        before, after: the tables of the run, and those that there are now.
    """

    run: RunDir
    config: RunConfig
    before: GroupSpec
    after: GroupSpec

    @property
    def stage(self) -> str:
        """The one that trained the run's method."""
        return next(iter(read_json(self.run.path / "embedding.json")))

    def sizes(self) -> tuple[type[EmbeddingBackend[Any]], BackendConfig]:
        """The backend and its sizes, grown to the ids that there are now. Raises SettingError where it cannot grow."""
        form = Form.model_validate(read_json(self.run.path / "embedding.json")[self.stage])
        config = form.module.Config.model_validate(form.config)
        if [t.num_embeddings for t in self.before.tables] != [t.num_embeddings for t in self.after.tables]:
            config = form.module.grown(config, self.before, self.after)
        return form.module, config

    def load(self, model: CTRModel) -> None:
        """Gives a new model of these sizes the run's best weights; known ids keep their vectors."""
        source = self._source(next(model.parameters()).device)
        with settings_written_as(_key):
            take_over(model.embedding.backend, source.embedding.backend, self.config.training.new_ids)
        model.load_state_dict({**model.state_dict(), **source.dense_state()})

    def load_optimizer(self, trainer: Trainer) -> None:
        """Gives a training that has not begun the state that the run's optimizer had; new rows begin with none."""
        source = self._source(torch.device("meta"))
        pairs = zip(tables_of(source).values(), tables_of(trainer.model).values())
        found = {f"table.{i}.": blocks_of(old, new) or [] for i, (old, new) in enumerate(pairs)}

        def grown(name: str, values: Tensor) -> Tensor:
            blocks = next((b for key, b in found.items() if name.startswith(key)), None)
            return values if blocks is None or name.endswith(".history") else grown_rows(values, blocks)

        trainer.load_optimizer(self._best, grown)
        for table, blocks in zip(trainer.optimizer.tables, found.values()):
            table.reset(new_rows(blocks).to(trainer.device))

    def _source(self, device: torch.device) -> CTRModel:
        model = stage_model(self.run, self.run.schema, self.before, self.stage, device)
        if device.type != "meta":
            load_model(model, self._best)
        return model

    @property
    def _best(self) -> Any:
        best = Checkpoints(self.run.checkpoints(self.stage)).best()
        assert best is not None  # a finished run has one
        return best


def check_fits(run: RunDir, config: RunConfig, dataset: EncodedDataset) -> None:
    """Raises UserError unless a training can begin with the weights of a run."""
    where = f"training.from {run.path}"
    if not run.done:
        raise UserError(f"{where}: the run is not finished; {run.how_to_continue}")
    old = run.config
    for key, before, now in [
        ("task", old.task, config.task),
        *((f"model.{k}", v, getattr(config.model, k, None)) for k, v in old.model.model_dump().items()),
        ("embedding.backend", old.embedding.backend, config.embedding.backend),
        ("embedding.options", old.embedding.options, config.embedding.options),
    ]:
        if before != now:
            raise UserError(f"{where}: its {key} is {_text(before)}, not {_text(now)}; weights go on in the same model")
    backend = backend_registry.get(config.embedding.backend)
    if len(backend.stages(config.embedding.options)) > 1:
        raise UserError(f"{where}: {backend.name} searches between trainings, so its weights cannot go on; train anew")
    optimizers = old.training.embedding_optimizer, config.training.embedding_optimizer
    if config.training.keep_optimizer and (len(set(optimizers)) > 1 or "dense_adam" in optimizers):
        raise UserError(
            f"training.keep_optimizer: embedding_optimizer is {optimizers[1]}, was {optimizers[0]}; a state goes on in "
            "the same one and not in dense_adam: set keep_optimizer: false"
        )
    known = read_json(run.path / "dataset.json")
    states = state_names(dataset.path)
    for name in states[: states.index(dataset.state) + 1]:
        earlier = open_dataset(dataset.path, name)
        if earlier.schema == run.schema and earlier.fingerprint == known.get("fingerprint"):
            return
    encoding = Encoding(run.schema, known.get("dense"), known.get("checksums", {}))
    raise UserError(
        f"{where}: {dataset.path} in state {dataset.state} does not go on from its dataset: "
        f"{encoding.difference(dataset.encoding)}; append new rows with `recsys-emb data append`"
    )


def _key(setting: str) -> str:
    return f"training.{setting}" if setting == "new_ids" else config_key(setting)


def _text(value: Any) -> str:
    return str(value.model_dump(exclude_defaults=True)) if isinstance(value, BackendConfig) else str(value)
