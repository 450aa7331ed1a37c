"""Tables of which some ids own a row and the rest share hashed rows: how bytes are split, and how ids are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.backends._hashed import HashedBackend, HashedConfig, hash_rows, most_rows, rows_within
from recsys_emb.embeddings.base import FieldReport, GroupSpec
from recsys_emb.embeddings.composed import OwnRows, Part, starts_of
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.row_index import RowIndex, index_bytes
from recsys_emb.embeddings.tables import block_table


class OwnRowsConfig(HashedConfig):
    """Options of methods with such tables."""

    frequent: float = Field(
        0.7,
        ge=0,
        le=1,
        description="share of the bytes of tables without room for all ids that goes to ids with their own row; more: "
        "fewer lookups collide, and more ids share each hashed row",
    )


O = TypeVar("O", bound=OwnRowsConfig)  # noqa: E741


class OwnRowsBackend(HashedBackend[O]):
    """A backend with such tables, which takes care of their sizes."""

    needs_id_list = True
    grows = False

    @classmethod
    def split(cls, spec: GroupSpec, config: O, budget: int, indexed: bool, most: int) -> tuple[int, dict[int, int]]:
        """How the bytes of tables without room for all ids are shared out.

        Args:
            spec: the tables.
            config: with the ``rows`` that ``hash`` would have.
            budget: bytes of the whole group.
            indexed: an index must say which ids own a row.
            most: no more ids can own one.

        Returns:
            How many ids of all these tables own a row, and for each the rows that its others share.
        """
        assert config.rows is not None
        sizes, row = most_rows(spec), 4 * spec.embedding_dim
        hashed = [t for t, n in enumerate(sizes) if config.rows[t] < n]
        ids, left = (
            sum(sizes[t] for t in hashed),
            budget - row * (sum(config.rows) - sum(config.rows[t] for t in hashed)),
        )
        spent = min(int(config.frequent * left), left - row * len(hashed))  # every table has a hashed row
        owners = min(most, own_rows_within(spent, ids, row, indexed))
        if not owners:
            return 0, {t: config.rows[t] for t in hashed}
        left -= owners * row + indexed * index_bytes(ids, owners)
        rest = replace(spec, tables=tuple(spec.tables[t] for t in hashed))
        return owners, dict(zip(hashed, rows_within(left, rest, config)))


class OwnAndHashed(Part):
    """The rows that ids own lie first, table by table, then each table's hashed rows.

    Args:
        tables: which tables of the group, rising.
        own: how many ids of each own a row.
        rows: how many rows the others share.
        spec: the group.
        seed: of the hash functions.
        indexed: an index says which ids own a row; if not, each table's first.
        device: where the rows are made.
    """

    def __init__(
        self,
        tables: Sequence[int],
        own: Sequence[int],
        rows: Sequence[int],
        spec: GroupSpec,
        seed: int,
        indexed: bool,
        device: torch.device | str | None,
    ) -> None:
        chosen = [spec.tables[t] for t in tables]
        stds, init_fns = [t.init_std for t in chosen], [t.init_fn for t in chosen]
        table = block_table([*own, *rows], spec.embedding_dim, stds * 2, device, init_fns * 2)
        stored = [a + b for a, b in zip(own, rows)]
        super().__init__(tables, hash_rows(rows, 1, seed), table, form="own and hashed", rows=stored)
        sizes = [t.num_embeddings for t in chosen]
        self.all_ids, self.own, self.own_starts = OwnRows(sizes), torch.tensor(own), starts_of(own)
        self.first_hashed = sum(own)
        self.index = RowIndex(sum(sizes), self.first_hashed, device) if indexed else None

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        hashed = self.hashed(ids, counts)
        if self.index is not None:
            rows, found = self.index(self.all_ids(ids, counts))
            return self.table(rows if found is None else torch.where(found, rows, hashed))
        rows = ids + per_id(self.own_starts, counts, ids)
        return self.table(torch.where(ids < per_id(self.own, counts, ids), rows, hashed))

    def hashed(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """The row that each id has while it owns none, int64 [n]."""
        return self.transform(ids, counts).flatten() + self.first_hashed

    def report(self, ids: Sequence[int], names: Sequence[str]) -> list[FieldReport]:
        lines = super().report(ids, names)
        if self.index is None:
            return lines
        size = index_bytes(self.index.ids, self.index.rows)
        return [*lines, FieldReport("(shared)", sum(ids), 0, 0, size, "index of rows")]


def own_rows_within(budget: int, ids: int, row_bytes: int, indexed: bool) -> int:
    """How many out of ``ids`` can own a row of so many bytes, and have an index, in ``budget`` bytes."""
    low, high = 0, ids  # all ids would be a full table
    while high - low > 1:
        middle = (low + high) // 2
        fits = middle * row_bytes + indexed * index_bytes(ids, middle) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low


def most_frequent(counts: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """The ``rows`` ids with the highest counts, of equal ones the first.

    Args:
        counts: of each table. Id 0, out-of-vocabulary, is taken for as frequent as its table's most frequent id.
        rows: at most the number of all ids.

    Returns:
        int64 [rows], rising; ids are numbered through all tables.
    """
    if not rows:
        return np.zeros(0, dtype=np.int64)
    flat = np.concatenate([part for c in counts for part in (c.max(keepdims=True), c[1:])])
    least = np.partition(flat, len(flat) - rows)[len(flat) - rows]
    above, equal = np.flatnonzero(flat > least), np.flatnonzero(flat == least)
    return np.sort(np.concatenate([above, equal[: rows - len(above)]]))
