"""Rows that training never, or seldom, looked up become the out-of-vocabulary row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, FieldReport, GroupSpec, Stats
from recsys_emb.embeddings.composed import OwnRows, starts_of
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.posttraining.base import PostTraining, register
from recsys_emb.embeddings.row_index import RowIndex, index_bytes
from recsys_emb.errors import UserError

OOV = 0


class DropUnseenConfig(BackendConfig):
    """Options of ``drop_unseen``."""

    min_count: int | None = Field(
        None,
        ge=1,
        description="ids that occur less often in training share the out-of-vocabulary row; higher: fewer bytes, "
        "coarser rare ids; absent: the least that fits the budget, 1 without a budget",
    )
    rows: tuple[int, ...] | None = Field(None, description="rows kept of each table; found from the counts")
    indexed: bool = Field(False, description="whether kept ids are indexed; if not, each table keeps its first ids")


@register("drop_unseen")
class DropUnseen(PostTraining[DropUnseenConfig]):
    """K kept rows of D floats, 4 K D bytes, and where it takes less than keeping up to the last such id, an index
    of them, at most 3/16 N bytes.

    An encoder numbers ids by falling count, so the kept ids are usually a table's first and need no index. Row 0
    becomes the mean of itself and the rows given up, weighted by their counts; with ``min_count`` 1 these have none
    and it stays as it is.
    """

    summary = "rows that training did not look up share the out-of-vocabulary row"
    Config = DropUnseenConfig
    fitted = ("rows", "indexed")
    values: Tensor

    def __init__(self, spec: GroupSpec, config: DropUnseenConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.rows is not None
        self.sizes = torch.tensor(config.rows)
        self.starts = starts_of(config.rows)
        self.all_rows = OwnRows([t.num_embeddings for t in spec.tables])
        total = sum(config.rows)
        self.register_buffer("values", torch.empty(total, spec.embedding_dim, device=device))
        self.index = RowIndex(spec.num_embeddings, total, device) if config.indexed else None

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        starts = per_id(self.starts, counts, ids)
        if self.index is not None:
            rows, found = self.index(self.all_rows(ids, counts))
            rows = rows if found is None else torch.where(found, rows, starts)
        else:
            rows = starts + torch.where(ids < per_id(self.sizes, counts, ids), ids, OOV)
        return F.embedding(rows, self.values)

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: DropUnseenConfig, stats: Stats | None = None) -> int:
        counts = _counts(spec, stats)
        least = config.min_count or int(max(c.max() for c in counts)) + 1
        return _choose(spec, [kept_ids(c, least) for c in counts])[1]

    @classmethod
    def fit(
        cls,
        trained: EmbeddingBackend[Any],
        config: DropUnseenConfig,
        budget: int | None = None,
        stats: Stats | None = None,
    ) -> Self:
        spec, counts = trained.spec, _counts(trained.spec, stats)
        least = config.min_count or _least_count(spec, counts, budget)
        kept = [kept_ids(c, least) for c in counts]
        indexed, _ = _choose(spec, kept)
        if not indexed:
            kept = [np.arange(k[-1] + 1) for k in kept]
        sized = config.model_copy(update={"min_count": least, "rows": tuple(len(k) for k in kept), "indexed": indexed})
        made = cls(spec, sized, trained.device)
        if made.index is not None:
            offsets = made.all_rows.starts.tolist()
            made.index.fill(torch.from_numpy(np.concatenate([k + o for k, o in zip(kept, offsets)])))
        for table, (ids, place) in enumerate(zip(kept, made.values.split([len(k) for k in kept]))):
            _fill(place, trained, table, ids, counts[table])
        return made

    def describe(self) -> list[FieldReport]:
        dim, ids = self.spec.embedding_dim, self.spec.num_embeddings
        assert self.config.rows is not None
        lines = [
            FieldReport(t.name, t.num_embeddings, k, dim, 4 * k * dim, "own and out-of-vocabulary")
            for t, k in zip(self.spec.tables, self.config.rows)
        ]
        if self.index is None:
            return lines
        return [*lines, FieldReport("(shared)", ids, 0, 0, index_bytes(ids, self.index.rows), "index of rows")]


def _counts(spec: GroupSpec, stats: Stats | None) -> list[np.ndarray]:
    """Each table's. Raises UserError naming a table whose counts are not known."""
    unknown = [t.name for t in spec.tables if stats is None or t.name not in stats]
    if stats is None or unknown:
        raise UserError(f"drop_unseen needs the training counts of every id, and {unknown[0]!r} has none")
    return [np.asarray(stats[t.name]) for t in spec.tables]


def kept_ids(counts: np.ndarray, least: int) -> np.ndarray:
    """int64, rising: id 0 and those that occur ``least`` times or more."""
    return np.union1d([OOV], np.flatnonzero(counts >= least))


def _choose(spec: GroupSpec, kept: Sequence[np.ndarray]) -> tuple[bool, int]:
    """Whether an index of the kept ids takes fewer bytes than keeping all up to the last, and the bytes."""
    row = 4 * spec.embedding_dim
    first = sum(int(k[-1]) + 1 for k in kept) * row
    rows = sum(map(len, kept))
    indexed = rows * row + index_bytes(spec.num_embeddings, rows)
    return indexed < first, min(first, indexed)


def _least_count(spec: GroupSpec, counts: Sequence[np.ndarray], budget: int | None) -> int:
    """The least ``min_count`` whose rows fit the budget."""

    def bytes_at(least: int) -> int:
        return _choose(spec, [kept_ids(c, least) for c in counts])[1]

    if budget is None or bytes_at(1) <= budget:
        return 1
    low, high = 1, int(max(c.max() for c in counts)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if bytes_at(middle) <= budget else (middle, high)
    return high


@torch.no_grad()
def _fill(place: Tensor, trained: EmbeddingBackend[Any], table: int, kept: np.ndarray, counts: np.ndarray) -> None:
    """Writes the kept rows to ``place`` [len(kept), D], row 0 merged with those given up."""
    given_up = np.ones(len(counts), dtype=bool)
    given_up[kept[1:]] = False
    merged, total, others, start, done = torch.zeros(place.shape[1], dtype=torch.float64), 0, 0, 0, 0
    for chunk in trained.rows(table):
        end = start + len(chunk)
        until = int(np.searchsorted(kept, end))
        place[done:until] = chunk.index_select(0, torch.from_numpy(kept[done:until] - start).to(chunk.device))
        weights = np.where(given_up[start:end], counts[start:end], 0)
        merged += torch.from_numpy(weights).double() @ chunk.double().cpu()
        total += int(weights.sum())
        others += int(weights[1:].sum() if start == 0 else weights.sum())
        start, done = end, until
    if others:
        place[OOV] = merged / total
