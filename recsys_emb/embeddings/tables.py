"""The physical table: rows of floats that are gathered, and that sparse optimizers update row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_emb.allocator import huge_pages


@dataclass(frozen=True)
class RowInit:
    """Consecutive rows of a table that start alike.

    Attributes:
        rows: how many.
        std: of their initial values, which are uniform.
        init_fn: fills them instead.
    """

    rows: int
    std: float
    init_fn: Callable[[Tensor], Tensor | None] | None = None

    def fill(self, weight: Tensor) -> None:
        """Gives rows of the block their initial values, in place; all at once or piece after piece."""
        if self.init_fn is None:
            fill_uniform(weight, self.std)
        else:
            self.init_fn(weight)


class EmbeddingTable(nn.Module):
    """[num_rows, dim] floats.

    Attributes:
        weight: the rows.
        num_rows: how many rows the table has; ``weight`` holds fewer where several processes share them.
        blocks: how the rows are filled at the start.
        sparse_grad: gradients are sparse COO (what row-wise optimizers need) instead of dense (what ``torch.optim``'s
            Adam and TorchRec's unsharded collections have). The trainer turns it on.
        before_lookup: called with the row numbers before they are gathered in training; an optimizer that defers
            updates of untouched rows brings these rows up to date here.
    """

    def __init__(self, num_rows: int, dim: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.blocks: list[RowInit] = []
        self.weight = nn.Parameter(huge_pages(torch.empty(num_rows, dim, device=device)))
        self.sparse_grad = False
        self.before_lookup: Callable[[Tensor], None] | None = None

    def forward(self, rows: Tensor) -> Tensor:
        """rows int64 [...] -> float [..., dim]."""
        if self.before_lookup is not None and self.training and torch.is_grad_enabled():
            self.before_lookup(rows)
        return F.embedding(rows, self.weight, sparse=self.sparse_grad)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Fills the rows, block by block."""
        for rows, block in zip(self.weight.split([b.rows for b in self.blocks]), self.blocks):
            block.fill(rows)

    def shard(self, values: Tensor) -> Tensor:
        """The entries of this process's rows, given a tensor with an entry for every row of the table."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """The inverse of ``shard``: the entries of all processes' rows, on the first process."""
        return values

    def extra_repr(self) -> str:
        return f"{self.num_rows}, {self.weight.shape[1]}"


def fill_uniform(weight: Tensor, std: float) -> None:
    """Uniform values of standard deviation ``std``, in place, without a temporary."""
    if weight.device.type != "meta":
        with torch.no_grad():
            weight.uniform_(-(3**0.5) * std, 3**0.5 * std)


def block_table(
    sizes: Sequence[int],
    dim: int,
    stds: Sequence[float],
    device: torch.device | str | None,
    init_fns: Sequence[Callable[[Tensor], Tensor | None] | None] | None = None,
) -> EmbeddingTable:
    """Blocks of rows one after another, each filled at its own scale, or by its own function where it has one."""
    table = EmbeddingTable(sum(sizes), dim, device)
    table.blocks = [RowInit(*of) for of in zip(sizes, stds, init_fns or [None] * len(sizes))]
    if table.weight.device.type != "meta":
        table.reset_parameters()
    return table
