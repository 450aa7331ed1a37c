"""Optimizers of embedding tables whose cost follows the batch: only rows that were looked up are touched.

Each works on an EmbeddingTable's sparse gradient. ``prepare`` runs before the forward gathers rows, ``step`` after
the backward. R rows, D columns, U distinct rows of a batch.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recsys_emb.embeddings.tables import EmbeddingTable


@dataclass
class Rows:
    """The distinct rows of a lookup, int64 [U]; ``inverse`` is where each looked-up row stands among them."""

    distinct: Tensor
    inverse: Tensor


class TableOptimizer(ABC):
    """Trains one table.

    Args:
        table: gets sparse gradients from now on.
        lr: learning rate; may be changed between steps once ``catch_up`` was called.
        l2: coupled L2, gradient ``l2 * w``.
    """

    state_names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, table: EmbeddingTable, lr: float, l2: float) -> None:
        self.table = table
        self.lr = lr
        self.l2 = l2
        self.steps = 0
        self._looked: list[Rows] = []
        table.sparse_grad = True
        table.before_lookup = self._prepare

    @torch.no_grad()
    def _prepare(self, rows: Tensor) -> None:
        self._looked.append(self.prepare(rows.reshape(-1)))

    def prepare(self, rows: Tensor) -> Rows:
        """Called with the row numbers int64 [N] of a lookup before they are gathered."""
        distinct, inverse = torch.unique(rows, return_inverse=True)
        return Rows(distinct, inverse)

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
        found = looked[0] if len(looked) == 1 else Rows(*torch.unique(rows, return_inverse=True))
        summed = values.new_zeros(len(found.distinct), values.shape[1])
        summed.index_add_(0, found.inverse, values)
        self.update(found.distinct, summed)

    @abstractmethod
    def update(self, rows: Tensor, grad: Tensor) -> None:
        """Updates ``rows`` int64 [U] by their gradient [U, D], which may be overwritten."""

    def discard(self) -> None:
        """Forgets lookups and gradient of a step that is not taken."""
        self._looked = []
        self.table.weight.grad = None

    def catch_up(self) -> None:  # noqa: B027  nothing lags behind by default
        """Brings every row up to date: before an evaluation, a checkpoint, or a change of ``lr``."""

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors of the whole table to save; the step count is kept by the caller."""
        return {name: self.table.whole(getattr(self, name)) for name in self.state_names}

    def load_state_dict(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Restores ``state_dict()`` in place."""
        self.steps = steps
        for name in self.state_names:
            own, stored = getattr(self, name), self.table.part(state[name])
            if own.shape != stored.shape:  # copying would broadcast
                raise ValueError(f"{name} has shape {list(stored.shape)}, expected {list(own.shape)}")
            own.copy_(stored)

    def state_bytes(self) -> int:
        """Of the rows that this process holds."""
        return sum(getattr(self, name).nbytes for name in self.state_names)


class SGD(TableOptimizer):
    """Plain SGD; L2 acts on looked-up rows."""

    def update(self, rows: Tensor, grad: Tensor) -> None:
        weight = self.table.weight
        if self.l2:
            grad.add_(weight.index_select(0, rows), alpha=self.l2)
        weight.index_add_(0, rows, grad, alpha=-self.lr)


class RowwiseAdagrad(TableOptimizer):
    """Adagrad with one accumulator per row, the mean of the squared gradient (FBGEMM's EXACT_ROWWISE_ADAGRAD).

    L2 acts on looked-up rows.
    """

    state_names = ("accumulator",)
    eps = 1e-8

    def __init__(self, table: EmbeddingTable, lr: float, l2: float) -> None:
        super().__init__(table, lr, l2)
        self.accumulator = torch.zeros(table.weight.shape[0], device=table.weight.device)

    def update(self, rows: Tensor, grad: Tensor) -> None:
        weight = self.table.weight
        if self.l2:
            grad.add_(weight.index_select(0, rows), alpha=self.l2)
        total = self.accumulator.index_select(0, rows).add_(grad.square().mean(1))
        self.accumulator.index_copy_(0, rows, total)
        weight.index_add_(0, rows, grad.div_(total.sqrt_().add_(self.eps)[:, None]), alpha=-self.lr)


class CatchUpAdam(TableOptimizer):
    """Adam that ends where dense Adam with coupled L2 would, while it touches only looked-up rows.

    Dense Adam goes on moving rows that a batch does not look up: momentum runs out and L2 shrinks them, which is the
    regulariser that rare ids need. Here each row remembers its last step, and on its next lookup first gets, in closed
    form, what it missed (:func:`missed_updates`). Updates of looked-up rows are Kingma & Ba 2015, algorithm 1.
    """

    state_names = ("exp_avg", "exp_avg_sq", "last_step")
    beta1, beta2, eps = 0.9, 0.999, 1e-8
    catch_up_rows: ClassVar[int] = 1 << 16

    def __init__(self, table: EmbeddingTable, lr: float, l2: float) -> None:
        super().__init__(table, lr, l2)
        weight = table.weight
        self.exp_avg = torch.zeros_like(weight, requires_grad=False)
        self.exp_avg_sq = torch.zeros_like(weight, requires_grad=False)
        self.last_step = torch.zeros(weight.shape[0], dtype=torch.int32, device=weight.device)

    def prepare(self, rows: Tensor) -> Rows:
        # Distinct rows without a sort: each row takes the position of one of its occurrences. `last_step` is read
        # anyway and written below, so it serves as the scratch memory, and nothing grows with the table.
        last = self.last_step
        position = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
        last_looked = last.index_select(0, rows)
        last.scatter_(0, rows, position)
        winner = last.index_select(0, rows)
        first = winner == position
        at = first.nonzero().view(-1)
        inverse = (first.cumsum(0, dtype=torch.int32) - 1).index_select(0, winner).long()
        distinct = rows.index_select(0, at)
        last.index_fill_(0, distinct, self.steps)
        last_distinct = last_looked.index_select(0, at)
        stale = (last_distinct != self.steps).nonzero().view(-1)
        if len(stale):
            self._catch_up(distinct.index_select(0, stale), last_distinct.index_select(0, stale))
        return Rows(distinct, inverse)

    def update(self, rows: Tensor, grad: Tensor) -> None:
        weight = self.table.weight
        if self.l2:
            grad.add_(weight.index_select(0, rows), alpha=self.l2)
        m = self.exp_avg.index_select(0, rows).lerp_(grad, 1 - self.beta1)
        v = self.exp_avg_sq.index_select(0, rows).mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
        self.exp_avg.index_copy_(0, rows, m)
        self.exp_avg_sq.index_copy_(0, rows, v)
        self.last_step.index_fill_(0, rows, self.steps)
        denominator = v.sqrt_().div_(math.sqrt(1 - self.beta2**self.steps)).add_(self.eps)
        weight.index_add_(0, rows, m.div_(denominator), alpha=-self.lr / (1 - self.beta1**self.steps))

    @torch.no_grad()
    def catch_up(self) -> None:
        for start in range(0, len(self.last_step), self.catch_up_rows):
            last = self.last_step[start : start + self.catch_up_rows]
            stale = (last != self.steps).nonzero().view(-1)
            if len(stale):
                self._catch_up(stale + start, last.index_select(0, stale))
                last.fill_(self.steps)

    def _catch_up(self, rows: Tensor, last: Tensor) -> None:
        weight = self.table.weight
        w, m, v = (t.index_select(0, rows) for t in (weight, self.exp_avg, self.exp_avg_sq))
        skipped = (self.steps - last).float()[:, None]
        missed_updates(w, m, v, skipped, last[:, None], self.lr, self.l2, self.beta1, self.beta2, self.eps)
        for target, value in ((weight, w), (self.exp_avg, m), (self.exp_avg_sq, v)):
            target.index_copy_(0, rows, value)


def missed_updates(
    w: Tensor,
    m: Tensor,
    v: Tensor,
    skipped: Tensor,
    last: Tensor,
    lr: float,
    l2: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """What dense Adam with coupled L2 would have done to rows of zero gradient, in place and in closed form.

    1. The momentum runs out: ``w -= lr m / s * beta1 (1 - beta1^k) / (1 - beta1)`` with s the Adam denominator.
    2. L2 shrinks: step j by ``lr min(1, l2 |w| / (s beta2^(j/2)))``. While the ratio is below 1 this is the factor
       ``exp(-lr l2 / s * (g^k - 1) / (g - 1))``, g = beta2^(-1/2); afterwards |w| falls by lr a step, down to zero.
    3. ``m *= beta1^k``, ``v *= beta2^k``.

    Left out: the bias corrections' change over the skipped steps, and what L2 adds to m and v meanwhile.

    Args:
        w, m, v: [U, D], overwritten.
        skipped: float [U, 1], k, steps that each row missed.
        last: [U, 1], step of each row's last update (0: never).
    """
    last = last.clamp(min=1).float()
    decay1 = torch.pow(beta1, skipped)
    correction = torch.sqrt(1 - torch.pow(beta2, last))  # of sqrt(v)
    s = v.sqrt().div_(correction).add_(eps)
    tail = (1 - decay1).mul_(lr * beta1 / (1 - beta1)).div_(1 - torch.pow(beta1, last))
    w.addcdiv_(m * tail, s, value=-1)
    if l2:
        magnitude = w.abs()
        log_g = -0.5 * math.log(beta2)
        # Steps until l2 |w| / (s g^-j) reaches 1, and how many of the skipped ones come before.
        before = magnitude.mul(l2).div_(s).log_().div_(-log_g).clamp_(min=0)
        before = torch.minimum(before, skipped, out=before)
        after = skipped - before
        growth = before.mul_(log_g).expm1_().div_(math.expm1(log_g))
        magnitude.mul_(growth.div_(s).mul_(-lr * l2).exp_()).sub_(after, alpha=lr).clamp_(min=0)
        torch.copysign(magnitude, w, out=w)
    m.mul_(decay1)
    v.mul_(torch.pow(beta2, skipped))


TABLE_OPTIMIZERS: dict[str, type[TableOptimizer]] = {
    "adam": CatchUpAdam,
    "rowwise_adagrad": RowwiseAdagrad,
    "sgd": SGD,
}
