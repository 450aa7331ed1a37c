"""Nested widths: a vector of w columns is the first w of V, the rest zeros. A first-order column stays behind them.

What is stored are the columns themselves, so a narrow table learns as the same columns of a full one: the same step,
the same L2. Only the start differs: its vectors are drawn sqrt(V / w) times as large, as long as those of V columns.

n rows, D columns in all, V = ``GroupSpec.vector_dim`` of them a vector, T tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.composed import OwnRows, Part, own_table
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.tables import RowInit, fill_uniform


def narrow(rows: Tensor, width: int, vector_dim: int) -> Tensor:
    """What is stored of rows at ``width`` >= 1: [n, D] -> [n, D - V + width]."""
    if width == vector_dim:
        return rows
    return torch.cat([rows[:, :width], rows[:, vector_dim:]], dim=1)


def widen(stored: Tensor, width: int, vector_dim: int) -> Tensor:
    """The inverse of ``narrow``, with zeros for the columns that were left out."""
    if width == vector_dim:
        return stored
    zeros = stored.new_zeros(stored.shape[0], vector_dim - width)
    return torch.cat([stored[:, :width], zeros, stored[:, width:]], dim=1)


def narrow_init(table: TableSpec, rows: int, width: int, vector_dim: int) -> RowInit:
    """How rows of ``width`` columns start: their vectors as long as those of V columns."""

    def fill(weight: Tensor) -> None:
        fill_uniform(weight, table.init_std)
        weight[:, :width] *= (vector_dim / width) ** 0.5

    exact = table.init_fn is not None or width in (0, vector_dim)
    return RowInit(rows, table.init_std, table.init_fn if exact else fill)


def by_width(widths: Sequence[int]) -> dict[int, list[int]]:
    """The tables of each width, widest first."""
    return {w: [t for t, mine in enumerate(widths) if mine == w] for w in sorted(set(widths), reverse=True)}


class NestedPart(Part):
    """Full tables, a row for every id, of which a lookup keeps the first columns.

    In training each looked-up id keeps a random number of columns, drawn from ``choices``: every row of a batch takes
    a path of its own, so a step averages over many; while ``fixed`` is set they keep so many. Otherwise a table keeps
    its width among ``widths``. At width 0 a first-order column goes, too.
    """

    fixed: int | None = None

    def __init__(self, spec: GroupSpec, choices: Sequence[int], device: torch.device | str | None) -> None:
        sizes = [t.num_embeddings for t in spec.tables]
        own = OwnRows(sizes)
        super().__init__(range(len(sizes)), own, own_table(spec.tables, spec.embedding_dim, device), rows=sizes)
        self.spec, self.sizes, self.starts = spec, sizes, own.starts
        self.choices = tuple(choices)
        self.drawn_from = torch.tensor(self.choices)
        self.use((spec.vector_dim,) * len(sizes))
        # A column is kept where its number is below the width; a first-order one is at every width but 0.
        self.columns = torch.arange(spec.embedding_dim)
        self.columns[spec.vector_dim :] = 0

    def use(self, widths: Sequence[int]) -> None:
        """Columns of each table outside training."""
        self.widths = torch.tensor(widths, device=self.starts.device)

    def nbytes(self, widths: Sequence[int]) -> int:
        """Bytes of tables cut to these widths."""
        return sum(4 * n * self.spec.columns(w) for n, w in zip(self.sizes, widths))

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows = self.table(self.transform(ids, counts))  # [n, D]
        return rows * self.kept_columns(ids, counts)

    def kept_columns(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """bool [n, D]."""
        if self.training and self.fixed is not None:
            widths = torch.full_like(ids, self.fixed)
        elif self.training:
            drawn = torch.randint(len(self.choices), ids.shape, device=ids.device)
            widths = self.drawn_from.to(ids.device).index_select(0, drawn)
        else:
            widths = per_id(self.widths, counts, ids)
        return self.columns.to(ids.device) < widths[:, None]

    def load_rows(self, table: int, rows: Tensor) -> None:
        """``rows`` float [n, D] of one table."""
        self.table.weight.split(self.sizes)[table].copy_(rows)
