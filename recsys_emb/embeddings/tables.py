"""The physical table: rows of floats that are gathered, and that sparse optimizers update row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

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


class RowOptimizer(Protocol):
    """What a table asks of the optimizer that trains it. Rows are numbers of this process's rows, int64 [N]."""

    def before_lookup(self, rows: Tensor) -> None:
        """Before rows are gathered in training: one that defers updates of untouched rows brings them up to date."""

    def current(self, rows: Tensor) -> Tensor:
        """The up-to-date values of distinct rows, float [N, dim]; nothing changes."""

    def row_state(self) -> list[Tensor]:
        """Every array that has an entry for each of the rows; an entry is moved with its row."""

    def reset(self, rows: Tensor) -> None:
        """Makes the state of rows that of rows which begin now."""


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
        optimizer: that of the rows, while they are trained.
        agree: makes values drawn here those of the first process, in place, where several train together.
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
        self.optimizer: RowOptimizer | None = None
        self.agree: Callable[[Tensor], object] = lambda values: None
        if not self.weight.is_meta:
            self.reset_parameters()

    def forward(self, rows: Tensor) -> Tensor:
        """rows int64 [...] -> float [..., dim]."""
        if self.optimizer is not None and self.training and torch.is_grad_enabled():
            self.optimizer.before_lookup(rows)
        return F.embedding(rows, self.weight, sparse=self.sparse_grad)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Gives all rows their initial values anew."""
        for rows, part in zip(self.weight.split([part.rows for part in self.init]), self.init):
            part.fill(rows)

    # -- rows between the steps of a training; where processes share the table, all make the same call ----------------

    @torch.no_grad()
    def current(self, rows: Tensor) -> Tensor:
        """The values [N, dim] of rows int64 [N], up to date also where the optimizer defers what unused rows miss."""
        distinct, inverse = torch.unique(rows, return_inverse=True)
        return self._current(distinct).index_select(0, inverse)

    @torch.no_grad()
    def move(self, src: Tensor, dst: Tensor) -> None:
        """Gives rows ``dst`` int64 [N], all distinct, what rows ``src`` int64 [N] have: values and optimizer state.

        Training goes on as if they had always been there. The rows of ``src`` that are not in ``dst`` stay as they are.

        Raises:
            RuntimeError: between a lookup and the step of its gradient.
        """
        self._check_between_steps()
        for values in self._row_arrays():
            self._move(values, src, dst)

    @torch.no_grad()
    def reset(self, rows: Tensor, values: Tensor | None = None) -> None:
        """Makes distinct rows int64 [N] anew, with the optimizer state of rows that begin now.

        Args:
            rows: their numbers.
            values: float [N, dim] that they begin with; None for initial values from new random numbers.

        Raises:
            RuntimeError: between a lookup and the step of its gradient.
        """
        self._check_between_steps()
        if values is None:
            values = self._initial(rows)
            self.agree(values)
        self._write(rows, values)
        if self.optimizer is not None:
            self.optimizer.reset(self._own(rows))

    def _check_between_steps(self) -> None:
        if self.weight.grad is not None:
            raise RuntimeError("rows cannot be moved or reset while a gradient waits for its step")

    def _row_arrays(self) -> list[Tensor]:
        return [self.weight.detach(), *(self.optimizer.row_state() if self.optimizer is not None else ())]

    def _initial(self, rows: Tensor) -> Tensor:
        """Initial values [N, dim] of rows [N]."""
        values = self.weight.new_empty(len(rows), self.weight.shape[1])
        end = 0
        for part in self.init:
            start, end = end, end + part.rows
            here = ((rows >= start) & (rows < end)).nonzero().view(-1)
            fresh = values.new_empty(len(here), values.shape[1])
            part.fill(fresh)
            values[here] = fresh
        return values

    def _current(self, rows: Tensor) -> Tensor:
        return self.weight.detach()[rows] if self.optimizer is None else self.optimizer.current(rows)

    def _move(self, values: Tensor, src: Tensor, dst: Tensor) -> None:
        """``values[dst] = values[src]`` of an array with an entry for each of this process's rows."""
        values.index_copy_(0, dst, values.index_select(0, src))

    def _write(self, rows: Tensor, values: Tensor) -> None:
        self.weight.index_copy_(0, rows, values)

    def _own(self, rows: Tensor) -> Tensor:
        """Those of the rows that this process holds, as it numbers them."""
        return rows

    # -- all rows, and those of this process --------------------------------------------------------------------------

    def shard(self, values: Tensor) -> Tensor:
        """The entries of this process's rows, given a tensor with an entry for every row of the table."""
        return values

    def gather(self, values: Tensor) -> Tensor:
        """The inverse of ``shard``: the entries of all processes' rows, on the first process."""
        return values

    def total(self, sums: Tensor) -> Tensor:
        """The sums over the rows of all processes, given those over this process's."""
        return sums

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
