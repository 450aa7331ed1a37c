"""Optimizers of embedding tables whose cost follows the batch: only rows that were looked up are touched.

Each works on an EmbeddingTable's sparse gradient. ``before_lookup`` runs before the forward gathers rows, ``step``
after the backward. R rows, D columns, N looked-up rows, U rows to update: each of these once, or on a card as it was
looked up (:mod:`recsys_emb.training.looked_up`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from recsys_emb.allocator import huge_pages
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.native import adam as native
from recsys_emb.native.adam import AdamRule, AdamState
from recsys_emb.training import adam_rows
from recsys_emb.training.adam_history import StepHistory
from recsys_emb.training.looked_up import LookedUp, looked_up, repeated


class TableOptimizer(ABC):
    """Trains one table.

    Args:
        table: gets sparse gradients from now on.
        lr: learning rate; may be changed between steps.
        l2: coupled L2, gradient ``l2 * w``.
    """

    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, table: EmbeddingTable, lr: float, l2: float) -> None:
        self.table = table
        self.lr = lr
        self.l2 = l2
        self.steps = 0
        self._looked: list[LookedUp] = []
        table.sparse_grad = True
        table.optimizer = self

    def zeros(self, *columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """State of every row of the table, [R, *columns]."""
        rows, device = len(self.table.weight), self.table.weight.device
        return huge_pages(torch.empty(rows, *columns, dtype=dtype, device=device)).zero_()

    @torch.no_grad()
    def before_lookup(self, rows: Tensor) -> None:
        self._looked.append(self.prepare(rows.reshape(-1)))

    def prepare(self, rows: Tensor) -> LookedUp:
        """Called with the row numbers int64 [N] of a lookup before they are gathered."""
        return looked_up(rows)

    @torch.no_grad()
    def step(self) -> None:
        """Applies the gradient and drops it."""
        grad, looked = self.table.weight.grad, self._looked
        self._looked = []
        self.steps += 1
        if grad is None:
            return
        self.table.weight.grad = None
        rows, values = grad._indices()[0], grad._values()
        # One lookup: the gradient's rows are in the lookup's order. Several: autograd has joined them.
        found = looked[0] if len(looked) == 1 else looked_up(rows)
        self.update(found.rows, found.summed(values))

    @abstractmethod
    def update(self, rows: Tensor, grad: Tensor) -> None:
        """Updates ``rows`` int64 [U] by their gradient [U, D], which may be overwritten.

        A row may be there several times, with the same gradient each time.
        """

    def discard(self) -> None:
        """Forgets lookups and gradient of a step that is not this table's."""
        self._looked = []
        self.table.weight.grad = None

    def catch_up(self) -> None:  # noqa: B027  nothing lags behind by default
        """Brings every row up to date, as whoever reads the weights needs them."""

    def current(self, rows: Tensor) -> Tensor:
        return self.table.weight.detach().index_select(0, rows)

    def row_state(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.state_names]

    @torch.no_grad()
    def reset(self, rows: Tensor) -> None:
        for state in self.row_state():
            state.index_fill_(0, rows, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of the whole table to save; the step count is kept by the caller."""
        return {name: self.table.gather(getattr(self, name)) for name in self.state_names}

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Restores ``state_dict()`` in place."""
        self.steps = steps
        for name in self.state_names:
            own, stored = getattr(self, name), self.table.shard(state[name])
            if own.shape != stored.shape:  # copying would broadcast
                raise ValueError(f"{name} has shape {list(stored.shape)}, expected {list(own.shape)}")
            own.copy_(stored)

    @property
    def row_bytes(self) -> int:
        """State of one row."""
        return sum(state[:1].nbytes for state in self.row_state())

    def state_bytes(self) -> int:
        """State of the rows that this process holds, and what belongs to no row."""
        return self.row_bytes * len(self.table.weight)


class SGD(TableOptimizer):
    """Plain SGD; L2 acts on looked-up rows."""

    def update(self, rows: Tensor, grad: Tensor) -> None:
        weight = self.table.weight.index_select(0, rows)
        if self.l2:
            grad.add_(weight, alpha=self.l2)
        self.table.weight.index_copy_(0, rows, weight.add_(grad, alpha=-self.lr))


class RowwiseAdagrad(TableOptimizer):
    """Adagrad with one accumulator per row, the mean of the squared gradient (FBGEMM's EXACT_ROWWISE_ADAGRAD).

    L2 acts on looked-up rows.
    """

    state_names = ("accumulator",)
    eps = 1e-8

    def __init__(self, table: EmbeddingTable, lr: float, l2: float) -> None:
        super().__init__(table, lr, l2)
        self.accumulator = self.zeros()

    def update(self, rows: Tensor, grad: Tensor) -> None:
        weight = self.table.weight.index_select(0, rows)
        if self.l2:
            grad.add_(weight, alpha=self.l2)
        total = self.accumulator.index_select(0, rows).add_(grad.square().mean(1))
        self.accumulator.index_copy_(0, rows, total)
        weight.addcdiv_(grad, total.sqrt_().add_(self.eps)[:, None], value=-self.lr)
        self.table.weight.index_copy_(0, rows, weight)


class CatchUpAdam(TableOptimizer):
    """Adam that ends where dense Adam with coupled L2 would, while it touches only looked-up rows.

    Dense Adam goes on moving rows that a batch does not look up: momentum runs out and L2 shrinks them, which is the
    regulariser that rare ids need. Here each row remembers its last step, and on its next lookup first gets, in closed
    form, what it missed (:func:`adam_rows.catch_up`). Updates of looked-up rows are Kingma & Ba 2015, algorithm 1.
    """

    state_names = ("exp_avg", "exp_avg_sq", "last_step")
    betas, eps = (0.9, 0.999), 1e-8
    catch_up_rows: ClassVar[int] = 1 << 16

    def __init__(self, table: EmbeddingTable, lr: float, l2: float) -> None:
        super().__init__(table, lr, l2)
        dim = table.weight.shape[1]
        self.exp_avg, self.exp_avg_sq = self.zeros(dim), self.zeros(dim)
        self.last_step = self.zeros(dtype=torch.int32)
        self.history = StepHistory(*self.betas, table.weight.device)
        self._rows = native if native.fits(table.weight) else adam_rows

    def prepare(self, rows: Tensor) -> LookedUp:
        if rows.device.type == "cpu":
            distinct, inverse, last = self._rows.distinct_rows(rows, self.last_step, self.steps)
            found = LookedUp(distinct, inverse)
        else:
            found, last = repeated(rows), self.last_step.index_select(0, rows)
            self.last_step.index_fill_(0, rows, self.steps)
        self._catch_up(found.rows, last)
        return found

    def step(self) -> None:
        self.history.append(self.lr)
        super().step()

    def update(self, rows: Tensor, grad: Tensor) -> None:
        self._rows.update(self._state, rows, grad, self.steps, self._rule)

    @torch.no_grad()
    def catch_up(self) -> None:
        for start in range(0, len(self.last_step), self.catch_up_rows):
            last = self.last_step[start : start + self.catch_up_rows]
            stale = (last != self.steps).nonzero().view(-1)
            if len(stale):
                self._catch_up(stale + start, last.index_select(0, stale))
                last.fill_(self.steps)

    @torch.no_grad()
    def reset(self, rows: Tensor) -> None:
        super().reset(rows)
        self.last_step.index_fill_(0, rows, self.steps)  # it missed nothing

    @torch.no_grad()
    def current(self, rows: Tensor) -> Tensor:
        copy = AdamState(*(t.index_select(0, rows) for t in self._state))
        everything = torch.arange(len(rows), device=rows.device)
        self._rows.catch_up(copy, everything, copy.last_step, self.history.sums, self._rule)
        return copy.weight

    def _catch_up(self, rows: Tensor, last: Tensor) -> None:
        self._rows.catch_up(self._state, rows, last, self.history.sums, self._rule)

    def state_dict(self) -> dict[str, Tensor]:
        return {**super().state_dict(), "history": self.history.sums}

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        history = state["history"]
        if history.shape != (steps + 1, 4):
            raise ValueError(f"history has shape {list(history.shape)}, expected {[steps + 1, 4]}")
        super().load_state_dict(state, steps)
        self.history.load(history)

    def state_bytes(self) -> int:
        return super().state_bytes() + self.history.sums.nbytes

    @property
    def _state(self) -> AdamState:
        return AdamState(self.table.weight.detach(), self.exp_avg, self.exp_avg_sq, self.last_step)

    @property
    def _rule(self) -> AdamRule:
        return AdamRule(self.lr, self.l2, *self.betas, self.eps)


TABLE_OPTIMIZERS: dict[str, type[TableOptimizer]] = {
    "adam": CatchUpAdam,
    "rowwise_adagrad": RowwiseAdagrad,
    "sgd": SGD,
}
