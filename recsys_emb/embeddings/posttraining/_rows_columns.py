"""Tables without their weakest rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.composed import starts_of
from recsys_emb.embeddings.constants import Constants
from recsys_emb.embeddings.posttraining._worth import Worth
from recsys_emb.embeddings.posttraining.base import all_rows, narrowest
from recsys_emb.embeddings.row_index import RowIndex, index_bytes

Strengths = tuple[list[Tensor], list[Tensor]]
"""The root of what values are worth in the mean: of each table's rows, float32 [N], and of its columns, [D]."""


class RowsColumns(Constants):
    """K_t rows and W_t columns of each table t; all else is 0.

    values: float32 [sum K_t W_t], table after table; columns: uint8 [sum W_t] (int16 above D = 256); index: which of
    the N rows, counted over all tables. 4 sum K_t W_t + sum W_t bytes, and at most 3/16 N for the index.

    Args:
        sizes: rows of each table, N in sum.
        dim: D.
        rows: K_t.
        widths: W_t.
        device: where the arrays are made.
    """

    values: Tensor
    columns: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        rows: Sequence[int],
        widths: Sequence[int],
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.rows, self.widths = dim, list(rows), list(widths)
        values = sum(k * w for k, w in zip(rows, widths))
        self.register_buffer("values", torch.empty(values, device=device))
        self.register_buffer("columns", torch.empty(sum(widths), dtype=narrowest(dim - 1), device=device))
        self.index = RowIndex(sum(sizes), sum(rows), device)
        self.row_starts = starts_of(rows)
        self.value_starts = starts_of([k * w for k, w in zip(rows, widths)])
        self.width_of = torch.tensor(self.widths)
        self.place_of = torch.tensor([p for width in widths for p in range(width)], dtype=torch.int64)
        self.table_of = torch.arange(len(self.widths)).repeat_interleave(self.width_of)

    def forward(self, rows: Tensor, tables: Tensor) -> Tensor:
        """rows int64 [n] over all tables and the table [n] of each -> float [n, D]."""
        if not len(self.values):
            return self.values.new_zeros(rows.shape[0], self.dim)
        device = rows.device
        at, kept = self.index(rows)
        widths = self.width_of.to(device)[tables]
        first = self.value_starts.to(device)[tables] + (at - self.row_starts.to(device)[tables]) * widths
        places = self._places()[tables]  # [n, D]
        there = places >= 0 if kept is None else kept[:, None] & (places >= 0)
        at = torch.where(there, first[:, None] + places, 0).flatten()
        return self.values.index_select(0, at).view(there.shape) * there

    def _places(self) -> Tensor:
        """int64 [T, D]: where a table's kept row holds each column; -1 where it does not."""
        device = self.columns.device
        at = self.table_of.to(device) * self.dim + self.columns
        out = torch.full([len(self.widths) * self.dim], -1, device=device)
        return out.scatter(0, at, self.place_of.to(device)).view(-1, self.dim)

    def per_table(self) -> list[tuple[int, int, int]]:
        """Rows, columns and bytes of each table, without the index that they share."""
        column = self.columns.dtype.itemsize
        return [(k, w, w * (4 * k + column)) for k, w in zip(self.rows, self.widths)]


def fit_rows_columns(
    trained: EmbeddingBackend[Any], budget: int, strengths: Strengths, column_factor: float
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Tensor]]:
    """Keeps the rows and the columns of each table whose strength is above a limit: the least that fits.

    Args:
        trained: whose rows.
        budget: bytes.
        strengths: of ``row_column_strengths``.
        column_factor: how many times the rows' limit that of columns is.

    Returns:
        rows kept and columns kept of each table, and the arrays of ``RowsColumns``.
    """
    spec = trained.spec
    ids, column_type = spec.num_embeddings, narrowest(spec.embedding_dim - 1)
    rows, columns = strengths[0], [c / column_factor for c in strengths[1]]
    ordered = [r.sort().values for r in rows]

    def sizes(limit: float) -> tuple[list[int], list[int]]:
        kept = [len(r) - int(torch.searchsorted(r, limit, right=True)) for r in ordered]
        widths = [int((c > limit).sum()) for c in columns]
        # A table without rows needs no columns, and the other way round.
        return [k if w else 0 for k, w in zip(kept, widths)], [w if k else 0 for k, w in zip(kept, widths)]

    def size(limit: float) -> int:
        kept, widths = sizes(limit)
        return sum(w * (4 * k + column_type.itemsize) for k, w in zip(kept, widths)) + index_bytes(ids, sum(kept))

    low, high = -1.0, max(float(r[-1]) for r in ordered)  # nothing is above the largest
    if size(low) <= budget:
        high = low
    for _ in range(64):
        middle = float(np.float32((low + high) / 2))  # compares alike with every float32
        low, high = (low, middle) if size(middle) <= budget else (middle, high)
    kept, widths = sizes(high)

    device = trained.device
    values, places, chosen = [torch.empty(0)], [], []
    for table, (strong, start) in enumerate(zip(rows, starts_of([len(r) for r in rows]).tolist())):
        if not kept[table]:
            continue
        column, mask, at = (columns[table] > high).nonzero()[:, 0], strong > high, 0
        chosen.append(column)
        places.append(mask.nonzero()[:, 0] + start)
        for chunk in trained.rows(table):
            values.append(chunk.float().cpu()[mask[at : at + len(chunk)]].index_select(1, column).flatten())
            at += len(chunk)
    none = torch.empty(0, dtype=torch.int64)
    index = RowIndex(ids, sum(kept), device)
    if sum(kept) < ids:
        index.fill(torch.cat([none, *places]).to(device))
    arrays = {
        "values": torch.cat(values).to(device),
        "columns": torch.cat([none, *chosen]).to(device, column_type),
        **{f"index.{name}": array for name, array in index.state_dict().items()},
    }
    return tuple(kept), tuple(widths), arrays


def row_column_strengths(trained: EmbeddingBackend[Any], worth: Worth) -> Strengths:
    """In one pass over the rows."""
    sizes = [t.num_embeddings for t in trained.spec.tables]
    rows = torch.empty(sum(sizes))
    columns = torch.zeros(len(sizes), trained.spec.embedding_dim, dtype=torch.float64)
    for table, place, chunk in all_rows(trained):
        squared = worth.roots(table, place, chunk).double().cpu().square()
        columns[table] += squared.sum(0)
        rows[place] = squared.mean(1).sqrt().float()
    means = columns / torch.tensor(sizes)[:, None]
    return list(rows.split(sizes)), list(means.sqrt().float())
