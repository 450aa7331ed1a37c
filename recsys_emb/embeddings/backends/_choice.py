"""Which cell of each level a query takes, and what these add up to.

n queries of T tables, L levels of K cells of d_l columns: those between ``columns[l]``, or all D of a residual code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_emb.embeddings.counts import all_equal, tally
from recsys_emb.embeddings.distinct import distinct


def choose(
    queries: Tensor,
    rows: Tensor,
    books: list[Tensor],
    columns: list[tuple[int, int]],
    counts: Sequence[int],
    by_product: bool,
) -> Tensor:
    """Each level's nearest cell, or that with the largest product; of a residual code to what those before leave.

    Args:
        queries: float32 [n, D], table-major.
        rows: int64 [n]; equal ones, of one table, have equal queries, which are looked at once.
        books: of each level, float32 [T, K, d_l].
        columns: first column and end of each.
        counts: how many queries belong to each table.
        by_product: the largest product is chosen, not the least distance.

    Returns:
        int64 [n, L], numbers of cells within their level and table.
    """
    return _choose(queries, rows, books, columns, list(counts), by_product)


@torch.fx.wrap
def _choose(
    queries: Tensor,
    rows: Tensor,
    books: list[Tensor],
    columns: list[tuple[int, int]],
    counts: list[int],
    by_product: bool,
) -> Tensor:
    if torch.jit.is_scripting():
        return _chosen(queries, books, columns, counts, by_product)
    if queries.is_meta or torch.compiler.is_exporting():
        return _chosen(queries, books, columns, counts, by_product)
    with torch.autocast(queries.device.type, enabled=False):  # as codes are when they are served
        if torch.compiler.is_compiling() or queries.is_cuda:  # a card takes longer to say how many there are
            return _chosen(queries, books, columns, counts, by_product)
        places, numbers = distinct(rows)  # table by table, as rows of tables lie
        ends = torch.tensor(counts, device=rows.device).cumsum(0)
        per_table = tally(torch.bucketize(places, ends, right=True), len(counts))
        return _chosen(queries[places], books, columns, per_table, by_product).index_select(0, numbers)


def _chosen(
    queries: Tensor, books: list[Tensor], columns: list[tuple[int, int]], counts: list[int], by_product: bool
) -> Tensor:
    if all_equal(counts):
        batched = queries.view(len(counts), counts[0], queries.shape[1])
        return _best(batched, books, columns, by_product).flatten(0, 1)
    parts: list[Tensor] = []
    for i, part in enumerate(queries.split(counts)):
        parts.append(_best(part.unsqueeze(0), [book[i : i + 1] for book in books], columns, by_product)[0])
    return torch.cat(parts)


def _best(rest: Tensor, books: list[Tensor], columns: list[tuple[int, int]], by_product: bool) -> Tensor:
    """[T, B, D] -> [T, B, L]."""
    found: list[Tensor] = []
    for (first, end), book in zip(columns, books):
        score = torch.bmm(rest[:, :, first:end], book.transpose(1, 2))
        if not by_product:  # |q - c|^2 = |q|^2 - 2 (q c - |c|^2 / 2)
            score.sub_(0.5 * book.square().sum(2).unsqueeze(1))
        cell = score.max(2)[1]  # faster than argmax
        found.append(cell)
        if end - first == rest.shape[2]:  # the next level codes what is left
            place = cell + torch.arange(book.shape[0], device=cell.device)[:, None] * book.shape[1]
            rest = rest - book.flatten(0, 1).index_select(0, place.flatten()).view(rest.shape)
    return torch.stack(found, 2)


def taken(books: list[Tensor], chosen: Tensor, side_by_side: bool) -> Tensor:
    """The cells that are chosen, float32 [n, D]: of a product side by side, of a residual code added up.

    Args:
        books: of each level, float32 [T, K, d_l].
        chosen: int64 [n, L], numbers of cells within their level, of all tables; T K stands for none.
        side_by_side: of a product.
    """
    parts = []
    for level, book in enumerate(books):
        rows = torch.cat([book.flatten(0, 1), book.new_zeros(1, book.shape[2])])
        parts.append(rows.index_select(0, chosen.select(1, level)))
    return torch.cat(parts, dim=1) if side_by_side else torch.stack(parts).sum(0)


def mixed(
    queries: Tensor, keys: list[Tensor], values: list[Tensor], columns: list[tuple[int, int]], counts: Sequence[int]
) -> Tensor:
    """Each level's mean of its values, weighed by a softmax of queries times keys, side by side; float32 [n, D]."""
    return _mixed(queries, keys, values, columns, list(counts))


@torch.fx.wrap
def _mixed(
    queries: Tensor, keys: list[Tensor], values: list[Tensor], columns: list[tuple[int, int]], counts: list[int]
) -> Tensor:
    if torch.jit.is_scripting():
        return _mix(queries, keys, values, columns, counts)
    if queries.is_meta or torch.compiler.is_exporting():
        return _mix(queries, keys, values, columns, counts)
    with torch.autocast(queries.device.type, enabled=False):
        return _mix(queries, keys, values, columns, counts)


def _mix(
    queries: Tensor, keys: list[Tensor], values: list[Tensor], columns: list[tuple[int, int]], counts: list[int]
) -> Tensor:
    if all_equal(counts):
        batched = queries.view(len(counts), counts[0], queries.shape[1])
        return _softmax(batched, keys, values, columns).flatten(0, 1)
    parts: list[Tensor] = []
    for i, part in enumerate(queries.split(counts)):
        mine = [key[i : i + 1] for key in keys], [value[i : i + 1] for value in values]
        parts.append(_softmax(part.unsqueeze(0), mine[0], mine[1], columns)[0])
    return torch.cat(parts)


def _softmax(queries: Tensor, keys: list[Tensor], values: list[Tensor], columns: list[tuple[int, int]]) -> Tensor:
    """[T, B, D] -> [T, B, D]."""
    parts: list[Tensor] = []
    for (first, end), key, value in zip(columns, keys, values):
        parts.append(torch.bmm(torch.bmm(queries[:, :, first:end], key.transpose(1, 2)).softmax(2), value))
    return torch.cat(parts, 2)
