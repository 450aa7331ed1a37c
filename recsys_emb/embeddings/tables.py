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
    """How consecutive rows of a table start.

    Attributes:
        rows: how many.
        std: of their initial values, which are uniform.
        init_fn: fills them instead.
    """

    rows: int
    std: float
    init_fn: Callable[[Tensor], Tensor | None] | None = None

    def fill(self, weight: Tensor) -> None:
        """Gives these rows their initial values, in place; all at once or piece after piece."""
        if self.init_fn is None:
            fill_uniform(weight, self.std)
        else:
            self.init_fn(weight)


class EmbeddingTable(nn.Module):
    """[num_rows, dim] floats, filled when they are made unless on the meta device.

    Args:
        num_rows, dim: its shape.
        init: the standard deviation that all rows start with, or how its ranges of rows start, one after another.
        device: where the rows are made; ``meta`` allocates nothing.

    Attributes:
        weight: the rows.
        num_rows: how many rows the table has; ``weight`` holds fewer where several processes share them.
        init: how the rows start, range by range.
        sparse_grad: gradients are sparse COO (what row-wise optimizers need) instead of dense (what ``torch.optim``'s
            Adam and TorchRec's unsharded collections have). The trainer turns it on.
        before_lookup: called with the row numbers before they are gathered in training; an optimizer that defers
            updates of untouched rows brings these rows up to date here.
    """

    def __init__(
        self, num_rows: int, dim: int, init: float | Sequence[RowInit], device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        self.num_rows = num_rows
        self.init = [RowInit(num_rows, init)] if isinstance(init, (int, float)) else list(init)
        if sum(part.rows for part in self.init) != num_rows:
            raise ValueError(f"init says how {sum(part.rows for part in self.init)} rows start, there are {num_rows}")
        self.weight = nn.Parameter(huge_pages(torch.empty(num_rows, dim, device=device)))
        self.sparse_grad = False
        self.before_lookup: Callable[[Tensor], None] | None = None
        if not self.weight.is_meta:
            self.reset_parameters()

    def forward(self, rows: Tensor) -> Tensor:
        """rows int64 [...] -> float [..., dim]."""
        if self.before_lookup is not None and self.training and torch.is_grad_enabled():
            self.before_lookup(rows)
        return F.embedding(rows, self.weight, sparse=self.sparse_grad)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives all rows their initial values anew."""
        for rows, part in zip(self.weight.split([part.rows for part in self.init]), self.init):
            part.fill(rows)

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
    init = [RowInit(*part) for part in zip(sizes, stds, init_fns or [None] * len(sizes))]
    return EmbeddingTable(sum(sizes), dim, init, device)
