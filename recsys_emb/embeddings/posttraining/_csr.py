"""Compressed sparse rows with narrow indices, and the exact global threshold that fills a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from recsys_emb.embeddings.base import EmbeddingBackend, budget_too_small
from recsys_emb.embeddings.posttraining.base import all_rows, narrowest

BLOCK = 32
"""Rows that share one full row pointer; inside, the row lengths are added up."""


class CSR(nn.Module):
    """K non-zero values of N rows, D columns.

    values [K] float32 and columns [K], row after row; lengths [ceil(N / 32), 32], values of each row; starts
    [ceil(N / 32)], the position of every 32nd row's first value. Columns and lengths are uint8 up to D = 255 (else
    int16), starts int32 up to 2^31 values: 5 K + 1.125 N bytes, where full row pointers would take 5 K + 4 N.
    """

    values: Tensor
    columns: Tensor
    lengths: Tensor
    starts: Tensor

    def __init__(
        self, sizes: Sequence[int], dim: int, kept: Sequence[int], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.dim, self.sizes, self.kept = dim, list(sizes), list(kept)
        rows, values = sum(sizes), sum(kept)
        blocks = -(-rows // BLOCK)
        shapes = {"values": (values,), "columns": (values,), "lengths": (blocks, BLOCK), "starts": (blocks,)}
        for name, dtype in csr_types(dim, values).items():
            self.register_buffer(name, torch.empty(shapes[name], dtype=dtype, device=device))

    def forward(self, rows: Tensor, tables: Tensor) -> Tensor:
        """rows int64 [n] -> float [n, D]."""
        block, inside = rows // BLOCK, rows % BLOCK
        lengths = self.lengths.index_select(0, block)  # [n, 32]
        length = lengths.gather(1, inside[:, None])[:, 0].long()
        behind = torch.arange(BLOCK, device=rows.device) >= inside[:, None]
        start = self.starts.index_select(0, block).long() + lengths.masked_fill(behind, 0).sum(1)
        return _filled(self.values, self.columns, start, length, self.dim)

    def per_table(self) -> list[tuple[int, int, int]]:
        """Rows, columns and bytes of each table, without ``starts`` and the end of ``lengths``."""
        value = self.values.dtype.itemsize + self.columns.dtype.itemsize
        lengths = self.lengths.dtype.itemsize
        return [(n, self.dim, k * value + n * lengths) for n, k in zip(self.sizes, self.kept)]


@torch.fx.wrap
def _filled(values: Tensor, columns: Tensor, start: Tensor, length: Tensor, dim: int) -> Tensor:
    """The n rows whose ``length`` values, each at its column, lie from ``start`` on; 0 elsewhere. float [n, dim]."""
    if not torch.jit.is_scripting() and torch.compiler.is_compiling():
        return _filled_alike(values, columns, start, length, dim)
    n = start.shape[0]
    total = int(length.sum())
    first = length.cumsum(0) - length
    entry = (start - first).repeat_interleave(length, output_size=total) + torch.arange(total, device=start.device)
    row = torch.arange(n, device=start.device).repeat_interleave(length, output_size=total)
    place = row * dim + columns.index_select(0, entry)
    return values.new_zeros([n * dim]).scatter_(0, place, values.index_select(0, entry)).view(n, dim)


def _filled_alike(values: Tensor, columns: Tensor, start: Tensor, length: Tensor, dim: int) -> Tensor:
    """``_filled`` by as many steps for every row, so that no size hangs on the values; slower where few are kept."""
    step = torch.arange(dim, device=start.device)
    there = step < length[:, None]
    entry = torch.where(there, start[:, None] + step, 0).flatten()
    place = torch.where(there, columns.index_select(0, entry).view(-1, dim).long(), dim)  # one column too many
    rows = values.index_select(0, entry).view(-1, dim)
    return rows.new_zeros([rows.shape[0], dim + 1]).scatter(1, place, rows)[:, :dim]


def csr_types(dim: int, values: int) -> dict[str, torch.dtype]:
    return {
        "values": torch.float32,
        "columns": narrowest(dim - 1),
        "lengths": narrowest(dim),
        "starts": torch.int32 if values <= torch.iinfo(torch.int32).max else torch.int64,
    }


def fit_csr(
    trained: EmbeddingBackend[Any], budget: int | None, wanted: int | None, method: str
) -> tuple[tuple[int, ...], dict[str, Tensor]]:
    """The largest values of all tables in CSR form.

    Args:
        trained: whose rows.
        budget: bytes to stay within; None for no limit.
        wanted: how many values to keep at most; None for as many as fit.
        method: its name, for the error.

    Returns:
        values kept of each table, and the arrays of ``CSR``.
    """
    spec = trained.spec
    dim, rows = spec.embedding_dim, spec.num_embeddings
    types = csr_types(dim, rows * dim)
    per_value = types["values"].itemsize + types["columns"].itemsize
    blocks = -(-rows // BLOCK)
    fixed = blocks * (BLOCK * types["lengths"].itemsize + types["starts"].itemsize)
    room = rows * dim if budget is None else (budget - fixed) // per_value
    if room < 0:
        assert budget is not None
        raise budget_too_small(method, budget, fixed)
    above, ties, count = threshold(trained, min(room, rows * dim if wanted is None else wanted))

    device = trained.device
    values = torch.empty(count, device=device)
    columns = torch.empty(count, dtype=types["columns"], device=device)
    lengths = torch.zeros(blocks * BLOCK, dtype=types["lengths"], device=device)
    kept = [0] * len(spec.tables)
    at = 0
    for table, place, chunk in all_rows(trained):
        bits = _magnitude(chunk)
        keep = bits > above
        if ties:  # of values equal to the threshold only so many fit
            equal = (bits == above).flatten().nonzero()[:ties, 0]
            keep.view(-1)[equal] = True
            ties -= len(equal)
        where = keep.nonzero()
        end = at + len(where)
        values[at:end] = chunk[keep]
        columns[at:end] = where[:, 1].to(columns.dtype)
        lengths[place] = keep.sum(1).to(lengths.dtype)
        kept[table] += len(where)
        at = end
    lengths = lengths.view(blocks, BLOCK)
    in_block = lengths.sum(1)
    starts = (in_block.cumsum(0) - in_block).to(csr_types(dim, count)["starts"])
    return tuple(kept), {"values": values, "columns": columns, "lengths": lengths, "starts": starts}


def threshold(trained: EmbeddingBackend[Any], count: int) -> tuple[int, int, int]:
    """The magnitude above which values are among the ``count`` largest: exact, in two passes over the rows.

    A float's bits without the sign rise with its magnitude, so the upper 16 bits are counted first, then the lower 16
    of those values whose upper ones are at the limit.

    Returns:
        the bits of the threshold, how many of the values equal to it are kept, how many are kept in all; zeros never.
    """
    if count == 0:
        return torch.iinfo(torch.int32).max, 0, 0
    high = torch.zeros(1 << 15, dtype=torch.int64)
    zeros = 0
    for _, _, chunk in all_rows(trained):
        bits = _magnitude(chunk).flatten()
        zeros += int((bits == 0).sum())
        high += torch.bincount(bits >> 16, minlength=1 << 15).cpu()
    count = min(count, int(high.sum()) - zeros)
    if count == 0:
        return torch.iinfo(torch.int32).max, 0, 0
    prefix, before = _reach(high, count)
    low = torch.zeros(1 << 16, dtype=torch.int64)
    for _, _, chunk in all_rows(trained):
        bits = _magnitude(chunk).flatten()
        low += torch.bincount(bits[bits >> 16 == prefix] & 0xFFFF, minlength=1 << 16).cpu()
    suffix, more = _reach(low, count - before)
    return prefix << 16 | suffix, count - before - more, count


def _reach(histogram: Tensor, count: int) -> tuple[int, int]:
    """The largest bin so that it and those above hold ``count`` or more, and how many those above hold."""
    from_top = histogram.flip(0).cumsum(0)
    at = int(torch.searchsorted(from_top, count))
    return len(histogram) - 1 - at, int(from_top[at] - histogram.flip(0)[at])


def _magnitude(rows: Tensor) -> Tensor:
    return rows.abs().contiguous().view(torch.int32)
