"""Codebooks that are trained beside the rows which they stand for.

T tables of L levels each, of K = 2^bits cells. Cells of a product have some of the D columns each, d_l of level l, and
lie side by side; others have all columns, and each level codes what those before leave.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_emb.embeddings.posttraining.base import saturated
from recsys_emb.embeddings.tables import fill_uniform

LEAST_STD = 1e-3
"""Of queries, when keys are scaled to them."""


class Codebooks(nn.Module):
    """The cells of T tables.

    Args:
        stds: of a cell's values at the start, one per table.
        columns: first column and end of each level.
        bits: of a code.
        dim: D.
        product: levels share out the columns.
        turned: a learned rotation, the exponential of a skew-symmetric matrix, comes after the cells.
        mapped: cells are fixed, and a learned linear map comes after them (Zhu et al., "Addressing Representation
            Collapse in Vector Quantized Models with One Linear Layer", 2024). What is stored is their product.
        keyed: cells have keys, by which they are chosen.
        device: where the arrays are made.

    Attributes:
        used: how often each cell was chosen since unused ones were made anew, float32 [L, T, K].
    """

    fixed: Tensor
    used: Tensor

    def __init__(
        self,
        stds: Sequence[float],
        columns: Sequence[tuple[int, int]],
        bits: int,
        dim: int,
        product: bool,
        turned: bool,
        mapped: bool,
        keyed: bool,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.stds, self.columns, self.product = list(stds), list(columns), product
        tables, levels = len(stds), len(columns)
        cells = torch.empty(tables, 1 if product else levels, 1 << bits, dim, device=device)
        if mapped:
            self.register_buffer("fixed", cells)
        else:
            self.books = nn.Parameter(cells)
        square = torch.empty(tables, dim, dim, device=device)
        self.map = nn.Parameter(square) if mapped else None
        self.turn = nn.Parameter(torch.empty_like(square)) if turned else None
        self.keys = nn.Parameter(torch.empty_like(cells)) if keyed else None
        self.register_buffer("used", torch.empty(levels, tables, 1 << bits, device=device))
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
            widest = max(end - first for first, end in self.columns)
            for key, std in zip(self.keys, self.stds):
                fill_uniform(key, 1 / (max(std, LEAST_STD) * widest**0.5))
        nn.init.zeros_(self.used)

    def stored(self) -> Tensor:
        """The cells, [T, 1, K, D] of a product, else [T, L, K, D]; outside training as float16 holds them."""
        books = self.books if self.map is None else self.fixed @ self.map[:, None]
        return books if self.training else in_half(books)

    def by_level(self, cells: Tensor) -> list[Tensor]:
        """The cells of each level, [T, K, d_l]."""
        levels = range(len(self.columns))
        return [cells[:, 0 if self.product else i, :, slice(*self.columns[i])] for i in levels]

    def rotation(self) -> Tensor:
        """[T, D, D], orthonormal to the precision that it is stored in."""
        assert self.turn is not None
        matrix = torch.linalg.matrix_exp(self.turn - self.turn.transpose(1, 2))
        return matrix if self.training else in_half(matrix)

    @torch.no_grad()
    def floats(self, table: int) -> Tensor:
        """A table's codebooks, mean and basis as a serving form stores them, float16 [n]."""
        parts = [book[table].flatten() for book in self.by_level(self.stored())]
        if self.turn is not None:
            rotation = self.rotation()[table]
            parts += [torch.zeros_like(rotation[0]), rotation.flatten()]
        return saturated(torch.cat(parts), torch.float16)

    @torch.no_grad()
    def revive(self, rows: Sequence[Tensor]) -> None:
        """Makes cells that were never used the rows [T, K, d_l] in their places, level by level."""
        for unused, book, new in zip(self.used == 0, self.by_level(self.books), rows):
            book.copy_(torch.where(unused[..., None], new, book))
        self.used.zero_()


def in_half(x: Tensor) -> Tensor:
    """float32 values as float16 holds them."""
    return saturated(x, torch.float16).float()
