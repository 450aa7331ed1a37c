"""From stored arrays to rows: codebooks in all columns, and the sums that codes stand for.

T tables, L levels at most, D columns. Where codebooks have fewer columns than D, or turned ones, a table stores what
these stand for, too: a mean [D] and a basis [width, D] behind its codebooks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_emb.embeddings.composed import project
from recsys_emb.embeddings.counts import repeated
from recsys_emb.embeddings.posttraining._levels import Layout, TableForm
from recsys_emb.embeddings.posttraining._packing import packed_bytes, unpack
from recsys_emb.native import codes as native


def level_table(forms: Sequence[TableForm]) -> Tensor:
    """Per table and level: ids that have a code, its bits, its first byte, its codebook's first row. int64 [T, L, 4]

    A table with fewer than L levels has zeros behind them.
    """
    out = torch.zeros(len(forms), max((len(form.bits) for form in forms), default=0), 4, dtype=torch.int64)
    byte = row = 0
    for table, form in enumerate(forms):
        for level, (ids, bits) in enumerate(zip(form.ids, form.bits)):
            out[table, level] = torch.tensor([ids, bits, byte, row])
            byte += packed_bytes(ids, bits)
            row += 1 << bits
    return out


def expanded(layout: Layout, form: TableForm, floats: Tensor) -> Tensor:
    """A table's codebooks in D columns, level after level, so that rows add up. float32 [sum 2^b, D]"""
    columns, width, floats = layout.columns(form), form.width, floats.float()
    sizes = [(end - first) << bits for (first, end), bits in zip(columns, form.bits)]
    *books, rest = floats.split([*sizes, len(floats) - sum(sizes)])
    shaped = [book.view(1 << bits, end - first) for book, bits, (first, end) in zip(books, form.bits, columns)]
    if layout.product:
        shaped = [F.pad(book, (first, width - end)) for book, (first, end) in zip(shaped, columns)]
    rows = torch.cat(shaped)
    if not layout.has_basis(form):
        return rows
    mean, basis = rest[: layout.dim], rest[layout.dim :].view(width, layout.dim)
    first = 1 << form.bits[0]  # the mean is part of the first level's rows
    return project(rows, basis[None], [len(rows)]) + F.pad(mean.expand(first, layout.dim), (0, 0, 0, len(rows) - first))


def decode(codes: Tensor, books: Tensor, levels: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
    """The sum of the codebook rows of each id, float32 [n, D].

    Args:
        codes: uint8 [bytes].
        books: float32 [R, D], as ``expanded``, of all tables.
        levels: as ``level_table``, of the tables that are looked up.
        ids: int64 [n], table-major; those that the first level does not cover are looked up as 0.
        counts: how many belong to each table.
    """
    return _decode(codes, books, levels, ids, list(counts))


@torch.fx.wrap
def _decode(codes: Tensor, books: Tensor, levels: Tensor, ids: Tensor, counts: list[int]) -> Tensor:
    if torch.jit.is_scripting():
        return _summed(codes, books, levels, ids, counts)
    if native.fits(books, levels, ids):
        return native.decode(codes, books, levels, ids, counts)
    return _summed(codes, books, levels, ids, counts)


def _summed(codes: Tensor, books: Tensor, levels: Tensor, ids: Tensor, counts: list[int]) -> Tensor:
    table = repeated(torch.arange(levels.shape[0], device=ids.device), counts, ids)
    at = levels.to(ids.device).index_select(0, table)  # [n, L, 4]
    covered, bits, byte, row = at.select(2, 0), at.select(2, 1), at.select(2, 2), at.select(2, 3)
    own = torch.where(ids < covered[:, 0], ids, torch.zeros_like(ids)).unsqueeze(1)
    there = own < covered
    place = row + unpack(codes, byte, own * there, bits)
    nothing = torch.full_like(place, books.shape[0])
    zeros = torch.cat([books, books.new_zeros([1, books.shape[1]])])
    return F.embedding_bag(torch.where(there, place, nothing), zeros, norm_type=2.0, mode="sum")
