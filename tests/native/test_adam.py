"""Adam of looked-up rows in C++ against the same in torch, on float64 where that is more exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_emb.native import adam as native
from recsys_emb.native.adam import AdamRule, AdamState
from recsys_emb.training import adam_rows as plain
from recsys_emb.training.adam_history import StepHistory

pytestmark = pytest.mark.skipif(
    not native.fits(torch.zeros(1, 8)), reason="no C++ compiler, or a processor without AVX2"
)

STEP = 5000
RULE = AdamRule(lr=1e-3, l2=1e-5, beta1=0.9, beta2=0.999, eps=1e-8)


def history_of(rates: np.ndarray) -> Tensor:
    history = StepHistory(RULE.beta1, RULE.beta2, torch.device("cpu"))
    for rate in rates.tolist():
        history.append(rate)
    return history.sums


RATES = np.linspace(2e-3, 1e-6, STEP)
HISTORY = history_of(RATES)


def some_state(rows: int, dim: int, seed: int = 0) -> AdamState:
    """Rows of all kinds: fresh, never looked up, zero, of gradients from 1e-9 to 1, last seen at any step."""
    g = torch.Generator().manual_seed(seed)
    size = 10 ** (torch.rand(rows, 1, generator=g) * 9 - 9)
    m, v = (torch.randn(rows, dim, generator=g) * size for _ in range(2))
    last = (torch.rand(rows, generator=g) ** 3 * STEP).int()
    last[::7] = STEP
    never = torch.arange(rows) % 5 == 0
    last[never], m[never], v[never] = 0, 0, 0
    w = torch.randn(rows, dim, generator=g) * 10 ** (torch.rand(rows, dim, generator=g) * 6 - 6)
    w[3::11] = 0
    return AdamState(w, m, v.square(), last)


def copied(state: AdamState, dtype: torch.dtype = torch.float32) -> AdamState:
    return AdamState(*(t.to(dtype, copy=True) for t in state[:3]), state.last_step.clone())


def assert_near(mine: AdamState, exact: AdamState, before: AdamState) -> None:
    """Relative to the larger of a value before and after: what a step takes back was rounded on its way."""
    for ours, theirs, start in zip(mine[:3], exact[:3], before[:3]):
        size = torch.maximum(start.double().abs(), theirs.abs()).clamp(min=1e-35)
        error = (ours.double() - theirs).abs() / size
        assert error.flatten().quantile(0.99).item() < 1e-5
        assert error.max().item() < 1e-3
    torch.testing.assert_close(mine.last_step, exact.last_step, rtol=0, atol=0)


@pytest.mark.parametrize("dim", [1, 3, 7, 8, 9, 16, 17, 31, 64])
@pytest.mark.parametrize("l2", [0.0, 1e-7, 1e-5, 1e-2])
def test_catching_up(dim: int, l2: float) -> None:
    before = some_state(1000, dim)
    rows = torch.randperm(1000)[:803]
    rule = RULE._replace(l2=l2)
    mine, exact = copied(before), copied(before, torch.float64)
    last = before.last_step[rows]
    native.catch_up(mine, rows, last, HISTORY, rule)
    exact_catch_up(exact, rows, last, rule)
    assert_near(mine, exact, before)
    others = torch.ones(1000, dtype=torch.bool).index_fill(0, rows, False)
    for ours, start in zip(mine, before):
        torch.testing.assert_close(ours[others], start[others], rtol=0, atol=0)


def exact_catch_up(state: AdamState, rows: Tensor, last: Tensor, rule: AdamRule) -> None:
    """The formulas of ``adam_rows.catch_up``, one number at a time in numpy's float64, their sums written out."""
    w, m, v = (t.numpy() for t in state[:3])
    for row, since in zip(rows.tolist(), last.tolist()):
        step = np.arange(since + 1, STEP + 1)
        if not len(step):
            continue
        k, rates = step - since, RATES[step - 1]
        pull = rates * np.sqrt(1 - rule.beta2**step) * rule.beta2 ** (-k / 2)
        tail = (pull * rule.beta1**k / (1 - rule.beta1**step)).sum()
        root = np.sqrt(v[row])
        w[row] -= m[row] * tail / (root + rule.eps * (np.sqrt(1 - rule.beta2**since) if since else 1))
        before = np.abs(w[row])
        v[row] *= rule.beta2 ** k[-1]
        if rule.l2:
            with np.errstate(divide="ignore"):
                most = rates.sum() / before
            exponent = rule.l2 / (root / pull.sum() + rule.eps / rates.sum())
            after = before * np.exp(-np.minimum(exponent, most + 0.35 * most**2))
            w[row] = np.copysign(after, w[row])
            square = (before**2 + before * after + after**2) / 3
            v[row] += (1 - rule.beta2 ** k[-1]) * rule.l2**2 * square
        m[row] *= rule.beta1 ** k[-1]


@pytest.mark.parametrize("dim", [1, 8, 17, 20])
@pytest.mark.parametrize("step", [1, 2, 5000])
@pytest.mark.parametrize("l2", [0.0, 1e-2])
def test_updating(dim: int, step: int, l2: float) -> None:
    before = some_state(500, dim)
    rows, rule = torch.randperm(500)[:211], RULE._replace(l2=l2)
    grad = torch.randn(211, dim) * 10 ** (torch.rand(211, 1) * 6 - 6)
    mine, exact = copied(before), copied(before, torch.float64)
    native.update(mine, rows, grad.clone(), step, rule)
    plain.update(exact, rows, grad.double(), step, rule)
    assert_near(mine, exact, before)


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(0, 2**31 - 1))
def test_distinct_rows(looked: list[int], step: int) -> None:
    rows, stored = torch.tensor(looked, dtype=torch.int64), torch.arange(10, dtype=torch.int32) * 7
    for functions in (native, plain):
        last_step = stored.clone()
        distinct, inverse, last = functions.distinct_rows(rows, last_step, step)
        assert sorted(distinct.tolist()) == sorted(set(looked))
        assert distinct[inverse].tolist() == looked
        torch.testing.assert_close(last, stored[distinct], rtol=0, atol=0)
        assert last_step.tolist() == [step if i in looked else 7 * i for i in range(10)]
    assert native.distinct_rows(rows, stored, step)[0].tolist() == list(dict.fromkeys(looked))


@pytest.mark.parametrize("row", [-1, 10, 2**40])
def test_a_row_that_is_not_there_changes_nothing(row: int) -> None:
    last_step = torch.arange(10, dtype=torch.int32)
    with pytest.raises(IndexError, match=f"row {row} is out of range for a table of 10"):
        native.distinct_rows(torch.tensor([3, row, 4]), last_step, 7)
    assert last_step.tolist() == list(range(10))


def test_what_is_not_a_number_stays_so() -> None:
    state = AdamState(*(torch.ones(2, 9) for _ in range(3)), torch.zeros(2, dtype=torch.int32))
    state.exp_avg[0, 0] = state.weight[1, 8] = torch.nan
    native.catch_up(state, torch.arange(2), state.last_step, HISTORY, RULE)
    assert state.weight.isnan().nonzero().tolist() == [[0, 0], [1, 8]]


def test_any_number_of_threads_gives_the_same_bits() -> None:
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        state = some_state(101, 17)
        native.catch_up(state, torch.arange(101), state.last_step, HISTORY, RULE)
        native.update(state, torch.arange(101), torch.ones(101, 17), STEP + 1, RULE)
        results.append(state)
    torch.set_num_threads(threads)
    for state in results[1:]:
        for mine, first in zip(state, results[0]):
            torch.testing.assert_close(mine, first, rtol=0, atol=0)


def test_no_rows() -> None:
    state, nothing = some_state(5, 8), torch.zeros(0, dtype=torch.int64)
    distinct, inverse, last = native.distinct_rows(nothing, state.last_step, STEP)
    native.catch_up(state, distinct, last, HISTORY, RULE)
    native.update(state, distinct, torch.zeros(0, 8), STEP, RULE)
    assert distinct.tolist() == inverse.tolist() == last.tolist() == []
    for mine, before in zip(state, some_state(5, 8)):
        torch.testing.assert_close(mine, before, rtol=0, atol=0)
