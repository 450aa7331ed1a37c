"""OptEmbed: thresholds decide which ids keep a row, a search decides each field's width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

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
from recsys_emb.embeddings.composed import ComposedBackend, OwnRows, Part, SizedConfig, starts_of
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.evolution import Evolution, Widths
from recsys_emb.embeddings.nested import NestedPart, by_width, narrow, widen
from recsys_emb.embeddings.row_index import RowIndex, index_bytes
from recsys_emb.embeddings.stages import InitFrom, Search, Stage, Train
from recsys_emb.embeddings.tables import block_table
from recsys_emb.errors import SettingError


class Found(BaseModel):
    """What a search found for each table: columns of its rows, a first-order one aside, and how many ids keep one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: tuple[int, ...]
    rows: tuple[int, ...]


class OptEmbedConfig(SizedConfig):
    """Options of ``optembed``."""

    alpha: float = Field(
        1e-4, ge=0, description="weight of sum exp(-threshold) in the loss; higher: fewer rows; the paper: 1e-6 to 1e-4"
    )
    threshold_lr: float = Field(0.1, gt=0, description="learning rate of thresholds, as a factor on the model's")
    retrain_from: Literal["initial", "best"] = Field(
        "initial",
        description="weights that the found form is trained from: those that the supernet started with, or its best, "
        "which takes fewer steps and overfits sooner",
    )
    generations: int = Field(5, ge=0, description="of the search for widths; the paper: 30")
    parents: int = Field(10, ge=1, description="candidates that a generation comes from; the paper: 15")
    mutations: int = Field(10, ge=0, description="new candidates a generation, by mutation")
    crossovers: int = Field(10, ge=0, description="new candidates a generation, by crossover")
    mutation_rate: float = Field(0.1, gt=0, le=1, description="share of fields that a mutation changes")
    search_rows: int | None = Field(
        20_000, ge=1, description="validation rows that a candidate is scored on; null: all, slower and less noisy"
    )
    bytes: int | None = Field(None, ge=1, description="what the serving form may take; absent: by the budget")
    found: Found | None = Field(None, description="filled by the search")

    @property
    def sized(self) -> bool:
        return self.bytes is not None


@register("optembed")
class OptEmbedBackend(ComposedBackend[OptEmbedConfig]):
    """OptEmbed (Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", 2022).

    1. The supernet is a full table and a threshold t_f per table. A row counts while ||row||_1 > t_f, with a
       straight-through step; the loss gains alpha * sum exp(-t_f). In training each looked-up id keeps a random number
       of columns, uniform over 1..D, so one table holds every width (sections 3.2, 3.3; the authors' code draws per
       sample and field, too).
    2. An evolutionary search looks for each table's width by evaluation on validation rows (section 3.3). A candidate
       keeps the rows above their threshold; where that exceeds the budget at its widths, those with the largest
       ||row||_1 - t_f over all tables, as many as fit: wide candidates keep few rows, narrow ones many.
    3. The found form is trained: the surviving rows at their table's width, tables of one width in one physical table,
       and an index of the ids that survive. An id without a row has the vector zero. This is the serving form already.

    Bytes: the kept rows, 4 * width each, and per width the index, at most 3/16 a byte for every id (:class:`RowIndex`).
    Before the search ``serving_bytes`` is their upper bound: the budget, or the full tables. A first-order column is
    kept at every width and goes with its row.
    """

    summary = "learned thresholds drop rows, a search finds each field's width"

    Config = OptEmbedConfig
    default_ratio = 1.0
    fitted = ("found",)

    def __init__(self, spec: GroupSpec, config: OptEmbedConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        if config.found is None:
            self.parts = nn.ModuleDict({"supernet": Supernet(spec, device)})
        else:
            self.parts = kept_parts(spec, config.found, device)

    @property
    def supernet(self) -> Supernet | None:
        """The trained form before the search."""
        return cast(Supernet, self.parts["supernet"]) if "supernet" in self.parts else None

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def checked(cls, spec: GroupSpec, config: OptEmbedConfig) -> OptEmbedConfig:
        if config.found is not None:
            raise SettingError("options.found", "the search finds it; leave it out")
        least, most = _least_bytes(spec), spec.full_bytes
        if config.bytes is not None and not least <= config.bytes <= most:
            raise SettingError("options.bytes", f"{config.bytes:,} bytes; allowed: {least:,} to {most:,}")
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: OptEmbedConfig, stats: Stats | None) -> OptEmbedConfig:
        return config.model_copy(update={"bytes": _least_bytes(spec)})

    @classmethod
    def size(cls, spec: GroupSpec, config: OptEmbedConfig, budget: int, stats: Stats | None) -> OptEmbedConfig:
        return config.model_copy(update={"bytes": min(budget, spec.full_bytes)})

    def storage(self) -> list[StorageItem]:
        if self.config.found is None:
            assert self.config.bytes is not None
            return [StorageItem("planned", (self.config.bytes,), torch.uint8)]
        return super().storage()

    def describe(self) -> list[FieldReport]:
        return EmbeddingBackend.describe(self) if self.config.found is None else super().describe()

    # -- training -----------------------------------------------------------------------------------------------------

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        assert isinstance(config, OptEmbedConfig)
        return (
            Train("supernet"),
            Search(rows=config.search_rows),
            Train("retrain", InitFrom(checkpoint=config.retrain_from)),
        )

    def param_groups(self) -> list[ParamGroup]:
        if self.supernet is None:
            return super().param_groups()
        return [
            ParamGroup("weight", [self.supernet.table.weight]),
            ParamGroup("threshold", [self.supernet.thresholds], self.config.threshold_lr),
        ]

    def aux_loss(self) -> Tensor | None:
        if self.supernet is None:
            return None
        return self.config.alpha * torch.exp(-self.supernet.thresholds).sum()

    # -- from the supernet to the rows that stay ----------------------------------------------------------------------

    @torch.no_grad()
    def search(self, score: Callable[[], float], seed: int) -> OptEmbedBackend:
        config, candidates = self.config, self.candidates()
        assert candidates is not None

        def fitness(widths: Widths) -> float:
            candidates.use(widths)
            return score()

        evolution = Evolution(
            config.generations, config.parents, config.mutations, config.crossovers, config.mutation_rate
        )
        candidates.use(evolution.best(fitness, len(self.spec.tables), self.spec.vector_dim, seed))
        return self._kept(candidates.margins)

    def candidates(self) -> OptEmbedCandidates | None:
        net = self.supernet
        if net is None:
            return None
        assert self.config.bytes is not None
        return OptEmbedCandidates(self.spec, net, self.config.bytes)

    def compact(self) -> OptEmbedBackend:
        """Of a supernet that was not searched: its present widths, and the rows that fit the budget at these."""
        net, candidates = self.supernet, self.candidates()
        if net is None or candidates is None:
            return self
        before = net.cut
        candidates.use(net.widths.tolist())
        kept = self._kept(candidates.margins)
        net.cut = before
        return kept

    @torch.no_grad()
    def _kept(self, margins: Sequence[Tensor]) -> OptEmbedBackend:
        """The rows that the supernet's present candidate keeps."""
        net = self.supernet
        assert net is not None
        masks = [m > net.cut for m in margins]
        found = Found(widths=tuple(net.widths.tolist()), rows=tuple(int(m.sum()) for m in masks))
        config = self.config.model_copy(update={"found": found})
        kept = OptEmbedBackend(self.spec, config, net.table.weight.device)
        for part in kept._kept_parts():
            part.index.fill(torch.cat([masks[t] for t in part.tables]).nonzero().view(-1))
        kept.inherit(self)
        return kept

    def inherit(self, source: EmbeddingBackend[Any]) -> None:
        net = cast(OptEmbedBackend, source).supernet
        if net is None or self.supernet is not None:
            super().inherit(source)
            return
        for part in self._kept_parts():
            part.take(net)

    def _kept_parts(self) -> list[KeptPart]:
        return [cast(KeptPart, part) for part in self.parts.values()]


def _least_bytes(spec: GroupSpec) -> int:
    """One row a table, at one column beside a first-order one, and its entry in a list of ids."""
    entry = 4 if spec.num_embeddings <= 1 << 31 else 8
    return min(len(spec.tables) * (4 * spec.columns(1) + entry), spec.full_bytes)


class Supernet(NestedPart):
    """A full table of which each lookup keeps some columns, and the rows above their table's threshold."""

    cut = 0.0
    """Outside training a row must be this much above its threshold."""

    def __init__(self, spec: GroupSpec, device: torch.device | str | None) -> None:
        super().__init__(spec, range(1, spec.vector_dim + 1), device)
        self.thresholds = nn.Parameter(torch.zeros(len(self.sizes), device=device))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.thresholds)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows = self.table(self.transform(ids, counts))  # [n, D]
        margin = l1_norms(rows) - per_id(self.thresholds, counts, ids)
        keep = LongTailStep.apply(margin) if self.training else (margin > self.cut).to(rows.dtype)
        return rows * (keep[:, None] * self.kept_columns(ids, counts))

    @torch.no_grad()
    def margins(self, chunk: int = 1 << 18) -> list[Tensor]:
        """How far each row is above its table's threshold, per table float [num_embeddings]."""
        norms = torch.cat([l1_norms(rows) for rows in self.table.weight.split(chunk)])
        return [norm - t for norm, t in zip(norms.split(self.sizes), self.thresholds)]


def l1_norms(rows: Tensor) -> Tensor:
    """[n, D] -> [n]; many times faster than ``torch.linalg.vector_norm``, forward and backward."""
    return rows.abs().sum(1)


class OptEmbedCandidates:
    """A supernet's forms within a budget: widths, and the rows furthest above their thresholds, as many as fit.

    Args:
        spec: the tables.
        net: trained; its weights are read once, here.
        budget: bytes.
    """

    def __init__(self, spec: GroupSpec, net: Supernet, budget: int) -> None:
        self.spec, self.net, self.budget = spec, net, budget
        self.choices = net.choices
        self.margins = net.margins()
        self._rising = [np.sort(m.cpu().numpy()) for m in self.margins]

    def use(self, widths: Sequence[int]) -> None:
        self.net.use(widths)
        self.net.cut = self._cut(widths)

    def nbytes(self, widths: Sequence[int]) -> int:
        return self._bytes(widths, self._cut(widths))

    def _bytes(self, widths: Sequence[int], cut: float | np.float32) -> int:
        rows = [len(m) - int(np.searchsorted(m, np.float32(cut), side="right")) for m in self._rising]
        return kept_bytes(self.spec, Found(widths=tuple(widths), rows=tuple(rows)))

    def _cut(self, widths: Sequence[int]) -> float:
        """The least margin, 0 or above, beyond which rows fit in the budget at these widths."""
        low, high = np.float32(0), max(m[-1] for m in self._rising)
        if self._bytes(widths, low) <= self.budget:
            return 0.0
        while low < (middle := (low + high) / np.float32(2)) < high:
            low, high = (low, middle) if self._bytes(widths, middle) <= self.budget else (middle, high)
        # Between two rows, so that no lookup's rounding moves one across.
        above = [m[i] for m in self._rising if (i := np.searchsorted(m, high, side="right")) < len(m)]
        return float((high + min(above)) / np.float32(2)) if above else float(high)


class LongTailStep(torch.autograd.Function):
    """1 where x > 0, else 0. Its gradient is the long-tailed estimator of Liu et al., "Dynamic Sparse Training", 2020,
    eq. 5: 2 - 4|x| up to 0.4, 0.4 up to 1, then 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        distance = x.abs()
        return grads[0] * torch.where(distance <= 0.4, 2 - 4 * distance, 0.4 * (distance <= 1))


class KeptPart(Part):
    """Tables of one width of which some ids keep a row.

    Args:
        tables: which tables of the group, rising.
        width: columns of a row, a first-order one aside.
        rows: how many ids of each table keep theirs.
        spec: the group.
        device: where the rows are made.
    """

    def __init__(
        self, tables: Sequence[int], width: int, rows: Sequence[int], spec: GroupSpec, device: torch.device | str | None
    ) -> None:
        sizes = [spec.tables[t].num_embeddings for t in tables]
        stds = [spec.tables[t].init_std for t in tables]
        table = block_table(rows, spec.columns(width), stds, device)
        super().__init__(tables, OwnRows(sizes), table, form="kept rows", rows=rows)
        self.width, self.vector_dim = width, spec.vector_dim
        self.index = RowIndex(sum(sizes), sum(rows), device)
        self.starts, self.ends = starts_of(sizes), torch.tensor(sizes).cumsum(0)

    @torch.no_grad()
    def take(self, net: Supernet) -> None:
        """The supernet's rows of the ids that keep theirs."""
        ids = self.table.shard(self.index.kept().cpu())
        shift = net.starts[self.tables] - self.starts  # from a table's place here to its place there
        at = ids + shift.index_select(0, torch.bucketize(ids.contiguous(), self.ends, right=True))
        rows = net.table(at.to(net.table.weight.device))
        self.table.weight.copy_(narrow(rows, self.width, self.vector_dim))

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows, found = self.index(self.transform(ids, counts))
        weight = self.table.weight
        vectors = self.table(rows) if self.index.rows else weight.new_zeros(ids.shape[0], weight.shape[1])
        if found is not None:
            vectors = vectors * found[:, None]
        return widen(vectors, self.width, self.vector_dim)

    def report(self, ids: Sequence[int], names: Sequence[str]) -> list[FieldReport]:
        shared = FieldReport("(shared)", sum(ids), 0, 0, index_bytes(self.index.ids, self.index.rows), "index of rows")
        return [*super().report(ids, names), shared] if shared.bytes else super().report(ids, names)


def kept_parts(spec: GroupSpec, found: Found, device: torch.device | str | None) -> nn.ModuleDict:
    """One part per width."""
    return nn.ModuleDict(
        {
            f"width_{width}": KeptPart(tables, width, [found.rows[t] for t in tables], spec, device)
            for width, tables in by_width(found.widths).items()
        }
    )


def kept_bytes(spec: GroupSpec, found: Found) -> int:
    """Bytes of ``kept_parts``: rows and indexes."""
    total = 0
    for width, tables in by_width(found.widths).items():
        ids, rows = sum(spec.tables[t].num_embeddings for t in tables), sum(found.rows[t] for t in tables)
        total += 4 * rows * spec.columns(width) + index_bytes(ids, rows)
    return total
