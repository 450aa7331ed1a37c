"""Tables without their weakest rows and columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.composed import starts_of
from recsys_emb.embeddings.posttraining.base import narrowest

ID_TYPE = torch.int32


class RowsColumns(nn.Module):
    """K_t rows and W_t columns of each table t; all else is 0.

    values: float32 [sum K_t W_t], table after table; ids: int32 [sum K_t], which rows, counted over all tables (int64
    from 2^31 rows on); columns: uint8 [sum W_t] (int16 above D = 256). 4 sum K_t (W_t + 1) + sum W_t bytes.
    """

    values: Tensor
    ids: Tensor
    columns: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        kept: Sequence[int],
        widths: Sequence[int],
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.kept, self.widths = dim, list(kept), list(widths)
        shapes = {"values": sum(k * w for k, w in zip(kept, widths)), "ids": sum(kept), "columns": sum(widths)}
        for name, dtype in stored_types(sum(sizes), dim).items():
            self.register_buffer(name, torch.empty(shapes[name], dtype=dtype, device=device))
        self.row_starts = starts_of(kept)
        self.value_starts = starts_of([k * w for k, w in zip(kept, widths)])

    def forward(self, rows: Tensor, tables: Tensor) -> Tensor:
        """rows int64 [n] over all tables and the table [n] of each -> float [n, D]."""
        if not len(self.values):
            return self.values.new_zeros(rows.shape[0], self.dim)
        device = rows.device
        wanted = rows.to(self.ids.dtype)
        at = torch.searchsorted(self.ids, wanted).clamp_(max=len(self.ids) - 1)
        kept = self.ids.index_select(0, at) == wanted
        widths = torch.tensor(self.widths, device=device)
        first = self.value_starts.to(device)[tables] + (at - self.row_starts.to(device)[tables]) * widths[tables]
        places = self._places()[tables]  # [n, D]
        there = kept[:, None] & (places >= 0)
        at = torch.where(there, first[:, None] + places, 0).flatten()
        return self.values.index_select(0, at).view(there.shape) * there

    def _places(self) -> Tensor:
        """int64 [T, D]: where a table's kept row holds each column; -1 where it does not."""
        device = self.columns.device
        widths = torch.tensor(self.widths, device=device)
        table = torch.arange(len(widths), device=device).repeat_interleave(widths)
        place = torch.arange(len(table), device=device) - (widths.cumsum(0) - widths)[table]
        out = torch.full((len(widths), self.dim), -1, device=device)
        out[table, self.columns.long()] = place
        return out

    def per_table(self) -> list[tuple[int, int, int]]:
        """Rows, columns and bytes of each table."""
        row, column = self.ids.dtype.itemsize, self.columns.dtype.itemsize
        return [(k, w, k * (4 * w + row) + w * column) for k, w in zip(self.kept, self.widths)]


def stored_types(rows: int, dim: int) -> dict[str, torch.dtype]:
    ids = ID_TYPE if rows <= torch.iinfo(ID_TYPE).max else torch.int64
    return {"values": torch.float32, "ids": ids, "columns": narrowest(dim - 1)}


def fit_rows_columns(
    trained: EmbeddingBackend[Any], budget: int
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Tensor]]:
    """Keeps the rows, and the columns of each table, whose root mean square is above a threshold: the least that fits.

    Returns:
        rows kept and columns kept of each table, and the arrays of ``RowsColumns``.
    """
    spec = trained.spec
    types = stored_types(spec.num_embeddings, spec.embedding_dim)
    rows, columns = _strengths(trained)
    ordered = [r.sort().values for r in rows]

    def sizes(limit: float) -> tuple[list[int], list[int]]:
        kept = [len(r) - int(torch.searchsorted(r, limit, right=True)) for r in ordered]
        widths = [int((c > limit).sum()) for c in columns]
        # A table without rows needs no columns, and the other way round.
        return [k if w else 0 for k, w in zip(kept, widths)], [w if k else 0 for k, w in zip(kept, widths)]

    def size(limit: float) -> int:
        return sum(k * (4 * w + types["ids"].itemsize) + w * types["columns"].itemsize for k, w in zip(*sizes(limit)))

    low, high = -1.0, max(float(r[-1]) for r in ordered)  # nothing is above the largest
    if size(low) <= budget:
        high = low
    for _ in range(64):
        middle = float(np.float32((low + high) / 2))  # compares alike with every float32
        low, high = (low, middle) if size(middle) <= budget else (middle, high)
    kept, widths = sizes(high)

    starts, parts, ids, chosen = starts_of([len(r) for r in rows]), [], [], []
    for table, start in enumerate(starts.tolist()):
        if not kept[table]:
            continue
        column = (columns[table] > high).nonzero()[:, 0]
        chosen.append(column)
        strong, at = rows[table] > high, 0
        ids.append(strong.nonzero()[:, 0] + start)
        for chunk in trained.rows(table):
            mask = strong[at : at + len(chunk)]
            parts.append(chunk.float().cpu()[mask].index_select(1, column).flatten())
            at += len(chunk)
    device = trained.device

    def joined(tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        return torch.cat([*tensors, torch.empty(0, dtype=dtype)]).to(device, dtype)

    arrays = {n: joined(t, types[n]) for n, t in (("values", parts), ("ids", ids), ("columns", chosen))}
    return tuple(kept), tuple(widths), arrays


def _strengths(trained: EmbeddingBackend[Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Root mean squares of each table's rows, float32 [N], and columns, [D]."""
    rows, columns = [], []
    for table, spec in enumerate(trained.spec.tables):
        squares, parts = torch.zeros(trained.spec.embedding_dim, dtype=torch.float64), []
        for chunk in trained.rows(table):
            squared = chunk.double().cpu().square()
            squares += squared.sum(0)
            parts.append(squared.mean(1).sqrt().float())
        rows.append(torch.cat(parts))
        columns.append((squares / spec.num_embeddings).sqrt().float())
    return rows, columns
