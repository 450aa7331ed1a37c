"""Compressed sparse rows with narrow indices, and the exact global threshold that fills a budget."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec
from recsys_emb.embeddings.posttraining._worth import Worth
from recsys_emb.embeddings.posttraining.base import all_rows, narrowest
from recsys_emb.embeddings.row_index import RowIndex, index_bytes

BLOCK = 32
"""Rows that share one full row pointer; inside, the row lengths are added up."""

Fits = Callable[[int, int], bool]
"""Whether so many values in so many rows may be kept; false for more of either where it is false for less."""


class CSR(nn.Module):
    """K non-zero values in R of N rows, D columns.

    values [K] float32 and columns [K], row after row; lengths [ceil(R / 32), 32], values of each row; starts
    [ceil(R / 32)], the position of every 32nd row's first value. Columns and lengths are uint8 up to D = 255 (else
    int16), starts int32 up to 2^31 values: 5 K + 1.125 R bytes, where full row pointers would take 5 K + 4 R.

    R is N, or where that takes less the rows that have a value, in front of which stands an index of them, at most
    3/16 N bytes (Buluc and Gilbert, "On the Representation and Multiplication of Hypersparse Matrices", 2008, whose
    doubly compressed form lists them).

    Args:
        sizes: rows of each table, N in sum.
        dim: D.
        rows: stored rows of each table, R in sum.
        values: values of each table, K in sum.
        device: where the arrays are made.
    """

    values: Tensor
    columns: Tensor
    lengths: Tensor
    starts: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        dim: int,
        rows: Sequence[int],
        values: Sequence[int],
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.rows, self.kept = dim, list(rows), list(values)
        total, stored = sum(values), sum(rows)
        blocks = -(-stored // BLOCK)
        shapes = {"values": (total,), "columns": (total,), "lengths": (blocks, BLOCK), "starts": (blocks,)}
        for name, dtype in csr_types(dim, total).items():
            self.register_buffer(name, torch.empty(shapes[name], dtype=dtype, device=device))
        self.index = RowIndex(sum(sizes), stored, device)

    def forward(self, rows: Tensor, tables: Tensor) -> Tensor:
        """rows int64 [n] -> float [n, D]."""
        if not self.index.rows:
            return self.values.new_zeros([rows.shape[0], self.dim])
        rows, found = self.index(rows)
        block, inside = rows // BLOCK, rows % BLOCK
        lengths = self.lengths.index_select(0, block)  # [n, 32]
        length = lengths.gather(1, inside[:, None])[:, 0].long()
        if found is not None:
            length = length * found
        behind = torch.arange(BLOCK, device=rows.device) >= inside[:, None]
        start = self.starts.index_select(0, block).long() + lengths.masked_fill(behind, 0).sum(1)
        return _filled(self.values, self.columns, start, length, self.dim)

    def per_table(self) -> list[tuple[int, int, int]]:
        """Rows, columns and bytes of each table, without what they share: ``starts``, index, the end of ``lengths``."""
        value = self.values.dtype.itemsize + self.columns.dtype.itemsize
        lengths = self.lengths.dtype.itemsize
        return [(n, self.dim, k * value + n * lengths) for n, k in zip(self.rows, self.kept)]


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


def csr_bytes(ids: int, dim: int, rows: int, values: int) -> int:
    """Bytes of ``CSR`` with ``rows`` of ``ids`` rows stored."""
    size = {name: dtype.itemsize for name, dtype in csr_types(dim, values).items()}
    per_block = BLOCK * size["lengths"] + size["starts"]
    return values * (size["values"] + size["columns"]) + -(-rows // BLOCK) * per_block + index_bytes(ids, rows)


def stored_rows(ids: int, dim: int, filled: int, values: int) -> int:
    """R of the form that takes the least bytes when ``filled`` rows have a value."""
    return min((ids, filled), key=lambda rows: csr_bytes(ids, dim, rows, values))


Kept = tuple[int, slice, Tensor, Tensor]
"""Rows of a table: its number, their place among the rows of all, float32 [n, D], and bool [n, D]: which to store."""


def fit_csr(
    trained: EmbeddingBackend[Any], fits: Fits, worth: Worth
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Tensor]]:
    """The values of all tables that are worth most, as many as fit; returns what ``packed`` does."""
    return packed(trained.spec, _most_worth(trained, fits, worth), trained.device)


def _most_worth(trained: EmbeddingBackend[Any], fits: Fits, worth: Worth) -> Iterator[Kept]:
    above, values, rows = threshold(trained, fits, worth)
    for table, place, chunk in all_rows(trained):
        bits = _bits(worth.roots(table, place, chunk))
        keep = bits > above
        if above:  # of values equal to the threshold only so many fit; zeros are never kept
            equal = (bits == above).nonzero()
            first = F.pad(equal[1:, 0] != equal[:-1, 0], (1, 0), value=True)[: len(equal)]
            new = first & ~keep.any(1).index_select(0, equal[:, 0])
            rows_then = rows + new.cumsum(0)
            more = bisect_left(range(len(equal)), True, key=lambda i: not fits(values + i + 1, int(rows_then[i])))
            keep[equal[:more, 0], equal[:more, 1]] = True
            values, rows = values + more, int(rows_then[more - 1]) if more else rows
        yield table, place, chunk, keep


def packed(
    spec: GroupSpec, chunks: Iterable[Kept], device: torch.device
) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Tensor]]:
    """The kept values of all tables, whose rows come in chunks.

    Returns:
        rows and values kept of each table, and the arrays of ``CSR``.
    """
    dim, ids = spec.embedding_dim, spec.num_embeddings
    types = csr_types(dim, ids * dim)
    kept = [0] * len(spec.tables)
    lengths = torch.zeros(ids, dtype=types["lengths"], device=device)
    pieces = [(torch.empty(0, device=device), torch.empty(0, dtype=types["columns"], device=device))]
    for table, place, chunk, keep in chunks:
        pieces.append((chunk[keep], keep.nonzero()[:, 1].to(types["columns"])))
        lengths[place] = keep.sum(1).to(types["lengths"])
        kept[table] += len(pieces[-1][0])

    stored = stored_rows(ids, dim, int((lengths > 0).sum()), sum(kept))
    index = RowIndex(ids, stored, device)
    counts = [t.num_embeddings for t in spec.tables]
    if stored < ids:
        filled = lengths.nonzero()[:, 0]
        index.fill(filled)
        counts = [int((part > 0).sum()) for part in lengths.split(counts)]
        lengths = lengths[filled]
    lengths = F.pad(lengths, (0, -stored % BLOCK)).view(-1, BLOCK)
    in_block = lengths.sum(1)
    arrays = {
        "values": torch.cat([v for v, _ in pieces]),
        "columns": torch.cat([c for _, c in pieces]),
        "lengths": lengths,
        "starts": (in_block.cumsum(0) - in_block).to(csr_types(dim, sum(kept))["starts"]),
        **{f"index.{name}": array for name, array in index.state_dict().items()},
    }
    return tuple(counts), tuple(kept), arrays


def threshold(trained: EmbeddingBackend[Any], fits: Fits, worth: Worth) -> tuple[int, int, int]:
    """The least worth above which all values fit: exact, in two passes over the rows.

    The bits of a float that is not negative rise with it, so the upper 16 bits are counted first, then the lower 16
    of those values whose upper ones are at the limit.

    Returns:
        the bits of the threshold's root, how many values are above it, and how many rows have one.
    """
    high = torch.zeros(1 << 15, dtype=torch.int64)
    largest = []  # of each row
    for table, place, chunk in all_rows(trained):
        bits = _bits(worth.roots(table, place, chunk))
        largest.append(bits.amax(1).cpu())
        high += torch.bincount(bits.flatten() >> 16, minlength=1 << 15).cpu()
    ordered = torch.cat(largest).sort().values

    def rows(limit: int) -> int:
        return len(ordered) - int(torch.searchsorted(ordered, limit, right=True))

    above_high = _from(high)
    prefix = bisect_left(range(1, len(high)), True, key=lambda p: fits(above_high[p], rows((p << 16) - 1)))
    low = torch.zeros(1 << 16, dtype=torch.int64)
    for table, place, chunk in all_rows(trained):
        bits = _bits(worth.roots(table, place, chunk)).flatten()
        low += torch.bincount(bits[bits >> 16 == prefix] & 0xFFFF, minlength=1 << 16).cpu()
    above_low = [above_high[prefix + 1] + n for n in _from(low)]
    suffix = bisect_left(range(len(low) - 1), True, key=lambda s: fits(above_low[s + 1], rows(prefix << 16 | s)))
    limit = prefix << 16 | suffix
    return limit, above_low[suffix + 1], rows(limit)


def _from(histogram: Tensor) -> list[int]:
    """How many there are in each bin and all above it, and a 0 behind the last."""
    return [*histogram.flip(0).cumsum(0).flip(0).tolist(), 0]


def _bits(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.int32)
