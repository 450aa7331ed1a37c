"""AutoDim: each table mixes vectors of several widths, and learns which one it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.backends.kept_rows import KeptRowsBackend
from recsys_emb.embeddings.backends.matryoshka import powers_of_two
from recsys_emb.embeddings.base import (
    BackendConfig,
    EmbeddingBackend,
    FieldReport,
    GroupSpec,
    ParamGroup,
    Stats,
    StorageItem,
    register,
)
from recsys_emb.embeddings.composed import ComposedBackend, SizedConfig
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.nested import NestedPart
from recsys_emb.embeddings.stages import Bilevel, InitFrom, Search, Stage, Train
from recsys_emb.errors import SettingError


class AutoDimConfig(SizedConfig):
    """Options of ``autodim``."""

    choices: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None, min_length=1, description="widths that each table chooses from; absent: 1, 2, 4, ... and D"
    )
    arch_lr: float = Field(10.0, gt=0, description="learning rate of the choice, as a factor on the model's")
    cooling: float = Field(5e-5, ge=0, description="by which the temperature falls a step, from 1 to 0.01")
    every: int = Field(4, ge=1, description="steps of the weights between two of the choice; fewer: slower")
    one_in: int = Field(10, ge=2, description="of so many training rows one is held out for the choice")
    retrain_from: Literal["initial", "best"] = Field(
        "initial", description="weights that the found widths are trained from: those at the very start, or the best"
    )
    bytes: int | None = Field(None, ge=1, description="what the serving form may take; absent: by the budget")

    @property
    def sized(self) -> bool:
        return self.bytes is not None


@register("autodim")
class AutoDimBackend(ComposedBackend[AutoDimConfig]):
    """AutoDim (Zhao et al., "AutoDim: Field-aware Embedding Dimension Search in Recommender Systems", WWW 2021).

    1. A table's vector is the mean of candidates of different widths, weighed by softmax((log a + g) / temperature), g
       Gumbel noise drawn at every step (section 3.3). The candidates are the first columns of one row (the paper's
       weight sharing, section 3.2.2); without its layers to a common width, they are padded with zeros. Every so many
       steps a learns from rows that were held out of training (section 3.4).
    2. A table gets the width with the largest log a - price * bytes, at the least price that fits the budget.
       Evaluation sees these widths.
    3. They are trained anew: :class:`KeptRowsBackend` with all rows, 4 * sum n_t w_t bytes.

    A first-order column is kept at every width. Without a budget: the likeliest widths.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> first = make_embedding_bag_collection([table], "autodim", budget=0.1)
        >>> then = first.search(lambda: 0.5)  # once it is trained; nothing is scored
        >>> first.serving_bytes(), then.serving_bytes()  # one column fits, two do not
        (64000, 40000)
    """

    summary = "each table learns a mixture of widths on held-out rows, then one is trained"

    Config = AutoDimConfig
    default_ratio = 1.0

    def __init__(self, spec: GroupSpec, config: AutoDimConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.choices is not None
        self.parts = nn.ModuleDict({"mixture": Mixture(spec, config.choices, device)})

    @property
    def mixture(self) -> Mixture:
        return cast(Mixture, self.parts["mixture"])

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def checked(cls, spec: GroupSpec, config: AutoDimConfig) -> AutoDimConfig:
        choices = tuple(sorted(set(config.choices or powers_of_two(spec.vector_dim))))
        if choices[-1] > spec.vector_dim:
            raise SettingError("options.choices", f"{choices[-1]} is too wide; allowed: 1 to {spec.vector_dim}")
        least, most = _bytes_of(spec, choices[0]), spec.full_bytes
        if config.bytes is not None and not least <= config.bytes <= most:
            raise SettingError("options.bytes", f"{config.bytes:,} bytes; allowed: {least:,} to {most:,}")
        return config.model_copy(update={"choices": choices})

    @classmethod
    def smallest(cls, spec: GroupSpec, config: AutoDimConfig, stats: Stats | None) -> AutoDimConfig:
        assert config.choices is not None
        return config.model_copy(update={"bytes": _bytes_of(spec, config.choices[0])})

    @classmethod
    def size(cls, spec: GroupSpec, config: AutoDimConfig, budget: int, stats: Stats | None) -> AutoDimConfig:
        return config.model_copy(update={"bytes": min(budget, spec.full_bytes)})

    def storage(self) -> list[StorageItem]:
        assert self.config.bytes is not None
        return [StorageItem("planned", (self.config.bytes,), torch.uint8)]

    def describe(self) -> list[FieldReport]:
        return EmbeddingBackend.describe(self)

    # -- training -----------------------------------------------------------------------------------------------------

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        assert isinstance(config, AutoDimConfig)
        bilevel = Bilevel(config.every, config.one_in)
        return Train("mixture", bilevel=bilevel), Search(), Train("retrain", InitFrom(checkpoint=config.retrain_from))

    def param_groups(self) -> list[ParamGroup]:
        part = self.mixture
        return [ParamGroup("weight", [part.table.weight]), ParamGroup("arch", [part.log_a], self.config.arch_lr)]

    def after_step(self, step: int) -> None:
        self.mixture.temperature.fill_(max(0.01, 1 - self.config.cooling * (step + 1)))

    def train(self, mode: bool = True) -> Self:
        ends = self.training and not mode
        super().train(mode)
        if ends and not self.mixture.found.is_meta:
            assert self.config.bytes is not None
            self.mixture.found.copy_(torch.tensor(self.mixture.best(self.config.bytes)))
        return self

    @torch.no_grad()
    def search(self, score: Callable[[], float], seed: int) -> KeptRowsBackend:
        """The widths that evaluation sees; nothing is scored."""
        part = self.mixture
        part.use(part.found.tolist())
        return KeptRowsBackend.chosen(self.spec, part, [torch.ones(n, dtype=torch.bool) for n in part.sizes])

    def compact(self) -> KeptRowsBackend:
        was_training = self.training
        self.eval()
        made = self.search(lambda: 0.0, 0)
        self.train(was_training)
        return made.eval()


class Mixture(NestedPart):
    """Full tables, of which a lookup in training mixes several widths.

    ``log_a`` float [T, K] is the choice, ``found`` int64 [T] the widths outside training.
    """

    found: Tensor
    temperature: Tensor

    def __init__(self, spec: GroupSpec, choices: Sequence[int], device: torch.device | str | None) -> None:
        super().__init__(spec, choices, device)
        self.log_a = nn.Parameter(torch.zeros(len(self.sizes), len(choices), device=device))
        self.register_buffer("found", torch.full((len(self.sizes),), max(choices), device=device))
        self.register_buffer("temperature", torch.ones((), device=device))
        self.within = (self.columns < torch.tensor(self.choices)[:, None]).float()  # [K, D]

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.log_a)
        self.found.fill_(max(self.choices))
        self.temperature.fill_(1.0)

    def kept_columns(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """What each column is multiplied by, float [n, D]."""
        if not self.training:
            return self.columns.to(ids.device) < per_id(self.found, counts, ids)[:, None]
        noise = torch.rand_like(self.log_a)
        self.table.agree(noise)
        gumbel = -torch.log(-torch.log(noise.clamp(1e-10, 1 - 1e-6)))
        shares = torch.softmax((self.log_a + gumbel) / self.temperature, dim=1)  # [T, K]
        return per_id(shares @ self.within.to(ids.device), counts, ids)

    @torch.no_grad()
    def best(self, budget: int) -> list[int]:
        """The likeliest widths within so many bytes, by one price of a byte for all tables; of equals the widest."""
        worth, widest_first = self.log_a.double().cpu().flip(1), self.choices[::-1]
        columns = torch.tensor([self.spec.columns(w) for w in widest_first], dtype=torch.float64)
        bytes_ = 4 * torch.tensor(self.sizes, dtype=torch.float64)[:, None] * columns

        def widths(price: float) -> list[int]:
            return [widest_first[k] for k in (worth - price * bytes_).argmax(1).tolist()]

        if self.nbytes(widths(0.0)) <= budget:
            return widths(0.0)
        low, high = 0.0, 1e9
        for _ in range(128):
            middle = (low + high) / 2
            low, high = (low, middle) if self.nbytes(widths(middle)) <= budget else (middle, high)
        return widths(high)


def _bytes_of(spec: GroupSpec, width: int) -> int:
    """Bytes when all tables have this width."""
    return 4 * spec.num_embeddings * spec.columns(width)
