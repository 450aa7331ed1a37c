"""Codebooks that are trained beside the rows which they stand for, and the choice of their cells.

T tables of L levels each, of K = 2^bits cells, D columns. A row is the sum of one cell of each level. Codes of a
product share out the columns between the levels, so that cells of one level are zero where another has its columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_emb.embeddings.counts import all_equal
from recsys_emb.embeddings.posttraining.base import saturated
from recsys_emb.embeddings.tables import fill_uniform

LEAST_STD = 1e-3
"""Of queries, when keys are scaled to them."""


class Codebooks(nn.Module):
    """The cells of T tables.

    Args:
        stds: of a cell's values at the start, one per table.
        levels: L.
        bits: of a code.
        columns: first column and end of each level.
        dim: D.
        product: levels share out the columns.
        turned: a learned rotation, the exponential of a skew-symmetric matrix, comes after the cells.
        mapped: cells are fixed, and a learned linear map comes after them (Zhu et al., "Addressing Representation
            Collapse in Vector Quantized Models with One Linear Layer", 2024). What is stored is their
            product.
        keyed: cells have keys, by which they are chosen.
        device: where the arrays are made.

    Attributes:
        used: how often each cell was chosen since unused ones were made anew, float32 [T, L, K].
    """

    fixed: Tensor
    used: Tensor

    def __init__(
        self,
        stds: Sequence[float],
        levels: int,
        bits: int,
        columns: Sequence[tuple[int, int]],
        dim: int,
        product: bool,
        turned: bool,
        mapped: bool,
        keyed: bool,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.stds, self.product = list(stds), product
        tables, cells = len(stds), torch.empty(len(stds), 1 if product else levels, 1 << bits, dim, device=device)
        if mapped:
            self.register_buffer("fixed", cells)
        else:
            self.books = nn.Parameter(cells)
        square = torch.empty(tables, dim, dim, device=device)
        self.map = nn.Parameter(square) if mapped else None
        self.turn = nn.Parameter(torch.empty_like(square)) if turned else None
        self.keys = nn.Parameter(torch.empty_like(cells)) if keyed else None
        self.register_buffer("used", torch.empty(tables, levels, 1 << bits, device=device))
        self.mask = torch.zeros(levels, 1, dim)
        for level, (first, end) in enumerate(columns):
            self.mask[level, :, first:end] = 1
        if not square.is_meta:
            self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        cells = self.books if self.map is None else self.fixed
        for book, std in zip(cells, self.stds):
            fill_uniform(book, std)
        if self.map is not None:
            self.map.copy_(torch.eye(self.map.shape[1]))
        if self.turn is not None:
            nn.init.zeros_(self.turn)
        if self.keys is not None:  # products with queries begin at about one
            columns = self.mask.sum(2).max().item()
            for key, std in zip(self.keys, self.stds):
                fill_uniform(key, 1 / (max(std, LEAST_STD) * columns**0.5))
        nn.init.zeros_(self.used)

    def forward(self) -> Tensor:
        """The cells in D columns, float32 [T, L, K, D]; outside training as they are served."""
        rows = self.stored() * self.mask.to(self.used.device)
        return rows if self.turn is None else rows @ self.rotation()[:, None]

    def key_rows(self) -> Tensor:
        """What cells are chosen by, float32 [T, L, K, D]."""
        assert self.keys is not None
        return self.keys * self.mask.to(self.used.device)

    def stored(self) -> Tensor:
        """What is stored of them: [T, 1, K, D] of a product, else [T, L, K, D]."""
        books = self.books if self.map is None else self.fixed @ self.map[:, None]
        return books if self.training else in_half(books)

    def rotation(self) -> Tensor:
        """[T, D, D]; the rows of each are orthonormal, to the precision that they are stored in."""
        assert self.turn is not None
        matrix = torch.linalg.matrix_exp(self.turn - self.turn.transpose(1, 2))
        return matrix if self.training else in_half(matrix)

    @torch.no_grad()
    def floats(self, table: int) -> Tensor:
        """A table's codebooks, mean and basis as a serving form stores them, float16 [n]."""
        book = self.stored()[table]
        parts = [book.flatten()]
        if self.product:
            kept = [mask[0].bool() for mask in self.mask.to(book.device)]
            parts = [book[0][:, columns].flatten() for columns in kept]
        if self.turn is not None:
            rotation = self.rotation()[table]
            parts += [torch.zeros_like(rotation[0]), rotation.flatten()]
        return saturated(torch.cat(parts), torch.float16)

    @torch.no_grad()
    def revive(self, dead: Tensor, rows: Tensor) -> None:
        """Gives the cells where ``dead`` bool [T, L, K] is true the columns of ``rows`` [T, L, K, D] that they have."""
        if self.turn is not None:
            rows = rows @ self.rotation().transpose(1, 2)[:, None]
        places = dead[..., None] & self.mask.to(dead.device).bool()
        if self.product:  # columns of different levels lie side by side
            rows, places = (rows * places).sum(1, keepdim=True), places.any(1, keepdim=True)
        self.books.copy_(torch.where(places, rows, self.books))


def in_half(x: Tensor) -> Tensor:
    """float32 values as float16 holds them."""
    return saturated(x, torch.float16).float()


def choose(queries: Tensor, cells: Tensor, counts: Sequence[int], by_product: bool) -> Tensor:
    """Level by level the cell that is nearest to what those before leave of a query, or has the largest product.

    Args:
        queries: float32 [n, D], table-major.
        cells: float32 [T, L, K, D].
        counts: how many queries belong to each table.
        by_product: the largest product is chosen, not the least distance.

    Returns:
        int64 [n, L], numbers of cells within their level.
    """
    return _choose(queries, cells, list(counts), by_product)


@torch.fx.wrap
def _choose(queries: Tensor, cells: Tensor, counts: list[int], by_product: bool) -> Tensor:
    if torch.jit.is_scripting():
        return _chosen(queries, cells, counts, by_product)
    if queries.is_meta or torch.compiler.is_exporting():
        return _chosen(queries, cells, counts, by_product)
    with torch.autocast(queries.device.type, enabled=False):  # as codes are when they are served
        return _chosen(queries, cells, counts, by_product)


def _chosen(queries: Tensor, cells: Tensor, counts: list[int], by_product: bool) -> Tensor:
    if all_equal(counts):
        batched = queries.view(cells.shape[0], counts[0], cells.shape[3])
        return _nearest(batched, cells, by_product).flatten(0, 1)
    parts: list[Tensor] = []
    for i, part in enumerate(queries.split(counts)):
        parts.append(_nearest(part.unsqueeze(0), cells[i : i + 1], by_product)[0])
    return torch.cat(parts)


def _nearest(rest: Tensor, cells: Tensor, by_product: bool) -> Tensor:
    """[T, B, D], [T, L, K, D] -> [T, B, L]."""
    lengths = cells.square().sum(3)
    if by_product:
        lengths = torch.zeros_like(lengths)
    found: list[Tensor] = []
    for level in range(cells.shape[1]):
        book = cells[:, level]
        cost = torch.baddbmm(lengths[:, level].unsqueeze(1), rest, book.transpose(1, 2), alpha=-2.0)
        cell = cost.argmin(2)
        rest = rest - book.gather(1, cell.unsqueeze(2).expand(-1, -1, book.shape[2]))
        found.append(cell)
    return torch.stack(found, 2)


def summed(cells: Tensor, chosen: Tensor) -> Tensor:
    """The sum of the rows [R, D] whose numbers are chosen, int64 [n, L]; R itself stands for none. float32 [n, D]"""
    return _summed(cells, chosen)


@torch.fx.wrap
def _summed(cells: Tensor, chosen: Tensor) -> Tensor:
    return F.embedding_bag(chosen, torch.cat([cells, cells.new_zeros([1, cells.shape[1]])]), norm_type=2.0, mode="sum")


def mixed(queries: Tensor, keys: Tensor, values: Tensor, counts: Sequence[int]) -> Tensor:
    """The mean of a table's values, [T, L, K, D], weighed in each level by a softmax of queries times keys; [n, D]."""
    return _mixed(queries, keys, values, list(counts))


@torch.fx.wrap
def _mixed(queries: Tensor, keys: Tensor, values: Tensor, counts: list[int]) -> Tensor:
    if torch.jit.is_scripting():
        return _mix(queries, keys, values, counts)
    if queries.is_meta or torch.compiler.is_exporting():
        return _mix(queries, keys, values, counts)
    with torch.autocast(queries.device.type, enabled=False):
        return _mix(queries, keys, values, counts)


def _mix(queries: Tensor, keys: Tensor, values: Tensor, counts: list[int]) -> Tensor:
    if all_equal(counts):
        return _softmax(queries.view(keys.shape[0], counts[0], keys.shape[3]), keys, values).flatten(0, 1)
    parts: list[Tensor] = []
    for i, part in enumerate(queries.split(counts)):
        parts.append(_softmax(part.unsqueeze(0), keys[i : i + 1], values[i : i + 1])[0])
    return torch.cat(parts)


def _softmax(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """[T, B, D], [T, L, K, D] twice -> [T, B, D]."""
    scores = torch.bmm(queries, keys.flatten(1, 2).transpose(1, 2))
    levels = [scores.shape[0], scores.shape[1], keys.shape[1], keys.shape[2]]
    return torch.bmm(scores.view(levels).softmax(3).flatten(2), values.flatten(1, 2))
