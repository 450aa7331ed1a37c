"""Adam of the rows that a batch looks up, in torch's operations; ``recsys_emb.native.adam`` has the same in C++.

R rows of a table, D columns, U rows of a lookup: where one is there several times, what is written is the same.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recsys_emb.native.adam import AdamRule, AdamState
from recsys_emb.training.adam_history import BIAS, PULL, RATES, TAIL

SATURATION = 0.35
"""Where L2 alone moves a weight, dense Adam takes it to ``w exp(-x - 0.35 x^2)``, x = A / |w|; a fit, see its test."""


def distinct_rows(rows: Tensor, last_step: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ones of a lookup, without a sort, and nothing grows with the table.

    Args:
        rows: int64 [N].
        last_step: int32 [R]; gets ``step`` for these rows.
        step: as of which they will be up to date.

    Returns:
        distinct rows int64 [U], the place of each looked-up row among them int64 [N], and the last step that each
        distinct row had, int32 [U].
    """
    # Each row takes the position of one of its occurrences. `last_step` is read anyway and written below, so it serves
    # as the scratch memory.
    position = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    last_looked = last_step.index_select(0, rows)
    last_step.scatter_(0, rows, position)
    winner = last_step.index_select(0, rows)
    first = winner == position
    at = first.nonzero().view(-1)
    inverse = (first.cumsum(0, dtype=torch.int32) - 1).index_select(0, winner).long()
    distinct = rows.index_select(0, at)
    last_step.index_fill_(0, distinct, step)
    return distinct, inverse, last_looked.index_select(0, at)


def catch_up(state: AdamState, rows: Tensor, last: Tensor, history: Tensor, rule: AdamRule) -> None:
    """What dense Adam with coupled L2 would have done to rows of zero gradient, in place and in closed form.

    With the sums A, D and T of :mod:`recsys_emb.training.adam_history` and k the number of missed steps:

    1. The momentum runs out: ``w -= m T / (sqrt(v) + eps c)``.
    2. L2 pulls. Its part of m, once corrected, is ``l2 w``, so a step shrinks |w| by the factor
       ``1 - lr l2 / (sqrt(v) + eps)``, v corrected: together ``exp(-l2 / (sqrt(v) / D + eps / A))``. L2's own part of v
       keeps a step from being longer than the learning rate: |w| shrinks by ``exp(-x - SATURATION x^2)``, x = A / |w|,
       at most.
    3. ``m *= beta1^k``, ``v = beta2^k v + (1 - beta2^k) l2^2 w^2``, w^2 the mean on a line from the old w to the new.

    Left out: that the momentum runs out while L2 pulls, not before, and what L2 adds to m.

    Args:
        state: the table's.
        rows: int64 [U].
        last: int32 [U], step of each row's last update (0: never).
        history: float64 [n + 1, 4], n the step until which the rows missed all.
        rule: l2 and the rest.
    """
    step = len(history) - 1
    tables = (state.weight, state.exp_avg, state.exp_avg_sq)
    w, m, v = (t.index_select(0, rows) for t in tables)
    skipped = (step - last).double()
    then, now = history.index_select(0, last), history[-1]
    growth = skipped.mul(-0.5 * math.log(rule.beta2)).clamp_(max=80).exp_()  # as far as fp32 goes
    rates, pull = now[RATES] - then[:, RATES], growth * now[PULL] - then[:, PULL]
    pulled = rates > 0  # not those that missed nothing
    rates, pull = rates.where(pulled, 1), pull.where(pulled, 1)
    # [U, 1] each
    a, d, t, c, l2, decay1, decay2 = (
        x.to(w.dtype)[:, None]
        for x in (
            rates, pull, then[:, TAIL], then[:, BIAS], pulled * rule.l2, rule.beta1**skipped, rule.beta2**skipped
        )
    )  # fmt: skip
    root = v.sqrt()
    w.addcdiv_(m * t, root + rule.eps * c, value=-1)
    v.mul_(decay2)
    if rule.l2:
        before = w.abs()
        exponent = l2 / root.div_(d).add_(rule.eps / a)
        x = a / before
        exponent = torch.minimum(exponent, x.square().mul_(SATURATION).add_(x), out=exponent)
        after = before * exponent.neg_().exp_()
        torch.copysign(after, w, out=w)
        square = (before + after).square_().addcmul_(before, after, value=-1)
        v.addcmul_(square, 1 - decay2, value=rule.l2**2 / 3)
    m.mul_(decay1)
    for target, value in zip(tables, (w, m, v)):
        target.index_copy_(0, rows, value)


def update(state: AdamState, rows: Tensor, grad: Tensor, step: int, rule: AdamRule) -> None:
    """Kingma & Ba 2015, algorithm 1, for ``rows`` int64 [U] by their gradient [U, D], which is overwritten.

    ``step`` counts from 1 and is their last from now on.
    """
    w = state.weight.index_select(0, rows)
    if rule.l2:
        grad.add_(w, alpha=rule.l2)
    m = state.exp_avg.index_select(0, rows).lerp_(grad, 1 - rule.beta1)
    v = state.exp_avg_sq.index_select(0, rows).mul_(rule.beta2).addcmul_(grad, grad, value=1 - rule.beta2)
    state.exp_avg.index_copy_(0, rows, m)
    state.exp_avg_sq.index_copy_(0, rows, v)
    state.last_step.index_fill_(0, rows, step)
    denominator = v.sqrt_().div_(math.sqrt(1 - rule.beta2**step)).add_(rule.eps)
    w.addcdiv_(m, denominator, value=-rule.lr / (1 - rule.beta1**step))
    state.weight.index_copy_(0, rows, w)
