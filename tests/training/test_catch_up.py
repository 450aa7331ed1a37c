"""What rows that batches skip get, against torch's Adam on all rows in float64, over everything that gaps depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor

from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.native import adam as native
from recsys_emb.training.optimizers import CatchUpAdam

LR = 1e-3
"""Another rate is another unit of the weights and of L2: the cases span both."""
WEIGHTS = (0.0003, 0.003, 0.03, 0.3)
GRADIENTS = (1e-7, -1e-7, 1e-5, -1e-3, 1e-1)
L2 = (0.0, 1e-7, 1e-5, 1e-3, 1e-1)


@pytest.fixture(params=["C++", "torch"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """In C++ and in torch."""
    if request.param == "torch":
        monkeypatch.setattr(native, "fits", lambda weight: False)


Weights = dict[tuple[float, int, int], Tensor]
"""Of the rows that share L2, the step of their only gradient, and how many steps later they are read."""


class Cases:
    """A row of one column for every weight, gradient and step at which the row gets that gradient.

    Args:
        updates: those steps.
        gaps: how many steps later a row is read.
        rate: the learning rate of a step, which counts from 1.
    """

    def __init__(self, updates: list[int], gaps: list[int], rate: Callable[[int], float] = lambda step: LR) -> None:
        rows = list(product(WEIGHTS, GRADIENTS, updates))
        self.weight, self.gradient, at = (torch.tensor(column).double()[:, None] for column in zip(*rows))
        self.updates = {t: (at == t).nonzero()[:, 0] for t in updates}
        self.reads = [(t, gap) for t in updates for gap in gaps]
        self.rate = rate
        self.steps = max(map(sum, self.reads))

    def ended(self, step: int) -> list[tuple[int, int]]:
        return [(t, gap) for t, gap in self.reads if t + gap == step]

    def dense(self) -> Weights:
        """In torch's Adam on whole tables, whose state is float64."""
        params = [torch.nn.Parameter(self.weight.clone()) for _ in L2]
        for p in params:
            p.grad = torch.zeros_like(p)
        groups = [{"params": [p], "weight_decay": l2} for p, l2 in zip(params, L2)]
        adam = torch.optim.Adam(groups, lr=LR, fused=True)
        found = {}
        for step in range(1, self.steps + 1):
            rows = self.updates.get(step, torch.arange(0))
            for p, group in zip(params, adam.param_groups):
                group["lr"] = self.rate(step)
                p.grad[rows] = self.gradient[rows]
            adam.step()
            for p, l2 in zip(params, L2):
                p.grad[rows] = 0
                found |= {(l2, *at): p.detach()[self.updates[at[0]]].clone() for at in self.ended(step)}
        return found

    def caught_up(self, every: int | None = None) -> Weights:
        """From rows that are caught up when they are looked up or read and, on request, every so many steps."""
        return {k: v for l2 in L2 for k, v in self._caught_up(l2, every).items()}

    def _caught_up(self, l2: float, every: int | None) -> Weights:
        table = EmbeddingTable(len(self.weight), 1, 0.01)
        table.weight.data.copy_(self.weight)
        adam = CatchUpAdam(table, LR, l2)
        found = {}
        for step in range(1, self.steps + 1):
            if step in self.updates:
                rows = self.updates[step]
                (table(rows) * self.gradient[rows].float()).sum().backward()
            adam.lr = self.rate(step)
            adam.step()
            if every and step % every == 0:
                adam.catch_up()
            found |= {(l2, *at): adam.current(self.updates[at[0]]).double() for at in self.ended(step)}
        return found

    def distance(self, a: Weights, b: Weights) -> Distance:
        """In units of a row's first weight or the length of ten steps, whatever is larger."""
        size = {t: self.weight[rows].abs().clamp(min=10 * LR) for t, rows in self.updates.items()}
        return Distance({key: (a[key] - b[key]).abs() / size[key[1]] for key in a})


class Distance(dict[tuple[float, int, int], Tensor]):
    """Distances by L2, update and gap."""

    def most(self, gaps: range, l2: Sequence[float] = L2) -> float:
        return max(d.max().item() for (of, _, gap), d in self.items() if gap in gaps and of in l2)

    def mean(self) -> float:
        return torch.cat(list(self.values())).mean().item()


SHORT, LONG = range(100), range(100, 10**7)
FEW = ([1, 10, 100, 300], [1, 3, 10, 30, 100, 300, 1000])
RATES = {"constant": lambda step: LR, "linear": lambda step: LR * (1 - (step - 1) / 1300)}


@pytest.fixture(scope="module", params=RATES)
def few(request: pytest.FixtureRequest) -> tuple[Cases, Weights]:
    """Gaps and updates of the first thousands of steps, and what dense Adam makes of them."""
    cases = Cases(*FEW, RATES[request.param])
    return cases, cases.dense()


@pytest.mark.usefixtures("_way")
def test_rows_end_where_dense_adam_puts_them(few: tuple[Cases, Weights]) -> None:
    """Within a fifth of the weight after 100 steps or more, and 2 % on average.

    Sooner, a row that had shrunk to nothing before its gradient came is off by some steps' length: dense Adam
    swings to and fro, as L2 pulls while the momentum still drives.
    """
    cases, dense = few
    distance = cases.distance(cases.caught_up(), dense)
    assert distance.most(LONG) < 0.2
    assert distance.most(SHORT) < 0.6
    assert distance.mean() < 0.02
    assert distance.most(range(10**7), l2=[0.0]) < 0.07


def test_how_often_rows_are_caught_up_matters_little(few: tuple[Cases, Weights]) -> None:
    """An evaluation catches up all rows; training goes on to nearly the same weights whether there is one or not."""
    cases, _ = few
    distance = cases.distance(cases.caught_up(), cases.caught_up(every=37))
    assert distance.most(LONG) < 0.2
    assert distance.most(SHORT) < 0.2
    assert distance.mean() < 0.005
    assert distance.most(range(10**7), l2=[0.0]) < 0.006


@pytest.mark.stress
def test_rows_end_where_dense_adam_puts_them_after_up_to_a_million_steps() -> None:
    cases = Cases([1, 10, 100, 1000, 10**4, 10**5], [1, 10, 100, 1000, 3000, 10**4, 30000, 10**5, 10**6])
    distance = cases.distance(cases.caught_up(), cases.dense())
    assert distance.most(LONG) < 0.2
    assert distance.most(SHORT) < 1.3  # 13 steps' length, of a row that had shrunk to nothing
    assert distance.mean() < 0.02


@pytest.mark.usefixtures("_way")
def test_a_row_updated_once_at_the_first_step() -> None:
    """The bias corrections of the first steps change by the factor 18 in the 400 steps that the row misses."""
    table = EmbeddingTable(1, 1, 0.01)
    table.weight.data.fill_(0.05)
    dense = torch.nn.Parameter(table.weight.detach().double().clone())
    ours, reference = CatchUpAdam(table, 1e-2, 1e-5), torch.optim.Adam([dense], lr=1e-2, weight_decay=1e-5)
    (table(torch.tensor([0])) * 1e-4).sum().backward()
    ours.step()
    dense.grad = torch.full_like(dense, 1e-4)
    reference.step()
    dense.grad.zero_()
    for _ in range(400):
        ours.step()
        reference.step()
    in_one = ours.current(torch.tensor([0]))
    assert abs(in_one.item() - dense.item()) < 1e-3
