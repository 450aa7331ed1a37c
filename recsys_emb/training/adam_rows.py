"""Adam of the rows that a batch looks up, in torch's operations; ``recsys_emb.native.adam`` has the same in C++.

R rows of a table, D columns, U distinct rows of a lookup.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class AdamState(NamedTuple):
    """A table [R, D], its moments [R, D], and int32 [R] the step of every row's last update (0: never)."""

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    last_step: Tensor


class AdamRule(NamedTuple):
    """Adam's numbers; ``l2`` is coupled, gradient ``l2 * w``."""

    lr: float
    l2: float
    beta1: float
    beta2: float
    eps: float


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


def catch_up(state: AdamState, rows: Tensor, last: Tensor, step: int, rule: AdamRule) -> None:
    """What dense Adam with coupled L2 would have done to rows of zero gradient, in place and in closed form.

    1. The momentum runs out: ``w -= lr m / s * beta1 (1 - beta1^k) / (1 - beta1)`` with s the Adam denominator.
    2. L2 shrinks: step j by ``lr min(1, l2 |w| / (s beta2^(j/2)))``. While the ratio is below 1 this is the factor
       ``exp(-lr l2 / s * (g^k - 1) / (g - 1))``, g = beta2^(-1/2); afterwards |w| falls by lr a step, down to zero.
    3. ``m *= beta1^k``, ``v *= beta2^k``.

    Left out: the bias corrections' change over the skipped steps, and what L2 adds to m and v meanwhile.

    Args:
        state: the table's.
        rows: distinct, int64 [U].
        last: int32 [U], step of each row's last update (0: never).
        step: until which they missed all, k = step - last.
        rule: lr, l2 and the rest.
    """
    stale = (last != step).nonzero().view(-1)
    if not len(stale):
        return
    rows, last = rows.index_select(0, stale), last.index_select(0, stale)
    tables = (state.weight, state.exp_avg, state.exp_avg_sq)
    w, m, v = (t.index_select(0, rows) for t in tables)
    skipped = (step - last).float()[:, None]
    since = last.clamp(min=1).float()[:, None]
    decay1 = torch.pow(rule.beta1, skipped)
    s = v.sqrt().div_(torch.sqrt(1 - torch.pow(rule.beta2, since))).add_(rule.eps)
    tail = (1 - decay1).mul_(rule.lr * rule.beta1 / (1 - rule.beta1)).div_(1 - torch.pow(rule.beta1, since))
    w.addcdiv_(m * tail, s, value=-1)
    if rule.l2:
        _shrink(w, s, skipped, rule)
    m.mul_(decay1)
    v.mul_(torch.pow(rule.beta2, skipped))
    for target, value in zip(tables, (w, m, v)):
        target.index_copy_(0, rows, value)


def _shrink(w: Tensor, s: Tensor, skipped: Tensor, rule: AdamRule) -> None:
    """What L2 does to w [U, D] in k = skipped [U, 1] steps, in place."""
    magnitude = w.abs()
    log_g = -0.5 * math.log(rule.beta2)
    # Steps until l2 |w| / (s g^-j) reaches 1, and how many of the skipped ones come before.
    before = magnitude.mul(rule.l2).div_(s).log_().div_(-log_g).clamp_(min=0)
    before = torch.minimum(before, skipped, out=before)
    after = skipped - before
    growth = before.mul_(log_g).expm1_().div_(math.expm1(log_g))
    magnitude.mul_(growth.div_(s).mul_(-rule.lr * rule.l2).exp_()).sub_(after, alpha=rule.lr).clamp_(min=0)
    torch.copysign(magnitude, w, out=w)


def update(state: AdamState, rows: Tensor, grad: Tensor, step: int, rule: AdamRule) -> None:
    """Kingma & Ba 2015, algorithm 1, for ``rows`` int64 [U], distinct, by their gradient [U, D], which is overwritten.

    ``step`` counts from 1 and is their last from now on.
    """
    if rule.l2:
        grad.add_(state.weight.index_select(0, rows), alpha=rule.l2)
    m = state.exp_avg.index_select(0, rows).lerp_(grad, 1 - rule.beta1)
    v = state.exp_avg_sq.index_select(0, rows).mul_(rule.beta2).addcmul_(grad, grad, value=1 - rule.beta2)
    state.exp_avg.index_copy_(0, rows, m)
    state.exp_avg_sq.index_copy_(0, rows, v)
    state.last_step.index_fill_(0, rows, step)
    denominator = v.sqrt_().div_(math.sqrt(1 - rule.beta2**step)).add_(rule.eps)
    state.weight.index_add_(0, rows, m.div_(denominator), alpha=-rule.lr / (1 - rule.beta1**step))
