"""Sparse table optimizers against dense ones of torch, and against their own formulas written plainly."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from recsys_emb.embeddings.tables import EmbeddingTable, RowInit
from recsys_emb.native import adam as native
from recsys_emb.training.optimizers import SGD, CatchUpAdam, RowwiseAdagrad, TableOptimizer


@pytest.fixture(autouse=True, params=["C++", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything here holds for Adam in C++ and in torch."""
    if request.param == "torch":
        monkeypatch.setattr(native, "fits", lambda weight: False)


def make_table(rows: int, dim: int, seed: int = 0) -> EmbeddingTable:
    table = EmbeddingTable(rows, dim, 0.01)
    torch.nn.init.normal_(table.weight, std=0.01, generator=torch.Generator().manual_seed(seed))
    return table


def train(table: EmbeddingTable, optimizer: TableOptimizer | torch.optim.Optimizer, steps: int, batch: int) -> None:
    """Pulls Zipf-drawn rows towards fixed targets through noise; the batches depend on nothing but their number."""
    rows, dim = table.weight.shape
    g = torch.Generator().manual_seed(7)
    target = torch.randn(rows, dim, generator=g) * 0.3
    popularity = 1 / torch.arange(1, rows + 1)
    for _ in range(steps):
        ids = torch.multinomial(popularity, batch, replacement=True, generator=g)
        noise = torch.randn(batch, dim, generator=g) * 0.01
        vectors = table(ids)
        loss = 0.002 * ((vectors - target[ids]) ** 2).sum() + (vectors * noise).sum()
        loss.backward()
        optimizer.step()
        if isinstance(optimizer, torch.optim.Optimizer):
            optimizer.zero_grad()


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


class LazyAdam(CatchUpAdam):
    """The same without catch-up: what it is compared with."""

    def _catch_up(self, rows: Tensor, last: Tensor) -> None:
        pass


@pytest.mark.parametrize(("l2", "lr"), [(0.0, 1e-3), (1e-5, 1e-3), (1e-4, 1e-3), (1e-3, 1e-3), (1e-2, 1e-4)])
def test_catch_up_adam_stays_close_to_dense_adam(l2: float, lr: float) -> None:
    """Over 2,000 steps, relative distance under 10 %, a fifth or less of plain lazy Adam's."""
    dense, ours, lazy = (make_table(300, 8) for _ in range(3))
    train(dense, torch.optim.Adam(dense.parameters(), lr=lr, weight_decay=l2), 2000, 16)
    optimizer = CatchUpAdam(ours, lr, l2)
    train(ours, optimizer, 2000, 16)
    optimizer.catch_up()
    train(lazy, LazyAdam(lazy, lr, l2), 2000, 16)
    error, lazy_error = (relative_error(t.weight.data, dense.weight.data) for t in (ours, lazy))
    assert error < 0.1
    assert error < lazy_error / 5


def test_catch_up_adam_equals_dense_adam_when_every_row_is_in_every_batch() -> None:
    dense, ours = make_table(20, 4), make_table(20, 4)
    reference = torch.optim.Adam(dense.parameters(), lr=1e-2, weight_decay=1e-2)
    optimizer = CatchUpAdam(ours, 1e-2, 1e-2)
    ids = torch.arange(20).repeat(2)  # twice each: gradients add up
    for step in range(50):
        for table in (dense, ours):
            (table(ids) * torch.sin(torch.arange(160.0).view(40, 4) + step)).sum().backward()
        reference.step()
        reference.zero_grad()
        optimizer.step()
    torch.testing.assert_close(ours.weight, dense.weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [SGD, RowwiseAdagrad, CatchUpAdam])
def test_rows_that_were_never_looked_up_do_not_move_without_l2(cls: type[TableOptimizer]) -> None:
    table = make_table(50, 4)
    before = table.weight.detach().clone()
    optimizer = cls(table, 0.1, 0.0)
    for _ in range(3):
        table(torch.tensor([3, 7, 3])).square().sum().backward()
        optimizer.step()
    optimizer.catch_up()
    moved = (table.weight.detach() != before).any(1).nonzero().flatten().tolist()
    assert moved == [3, 7]


@pytest.mark.parametrize("cls", [SGD, RowwiseAdagrad, CatchUpAdam])
def test_two_lookups_in_one_step_are_one_update_of_the_summed_gradient(cls: type[TableOptimizer]) -> None:
    twice, once = make_table(10, 4), make_table(10, 4)
    a, b = cls(twice, 0.1, 1e-2), cls(once, 0.1, 1e-2)
    for _ in range(3):
        (twice(torch.tensor([1, 2])).sum() + twice(torch.tensor([2, 5, 5])).square().sum()).backward()
        both = once(torch.tensor([1, 2, 2, 5, 5]))
        (both[:2].sum() + both[2:].square().sum()).backward()
        a.step()
        b.step()
    torch.testing.assert_close(twice.weight, once.weight)


def test_sgd_equals_dense_sgd() -> None:
    dense, ours = make_table(100, 4), make_table(100, 4)
    train(dense, torch.optim.SGD(dense.parameters(), lr=0.5), 200, 16)
    train(ours, SGD(ours, 0.5, 0.0), 200, 16)
    torch.testing.assert_close(ours.weight, dense.weight)


def test_rowwise_adagrad_follows_its_formula() -> None:
    table = make_table(6, 3)
    weight, total = table.weight.detach().clone(), torch.zeros(6)
    optimizer = RowwiseAdagrad(table, 0.1, 0.01)
    for ids in ([0, 1, 1], [1, 4, 5], [0, 0, 0]):
        rows = torch.tensor(ids)
        (table(rows) ** 3).sum().backward()
        optimizer.step()
        for row in set(ids):
            grad = ids.count(row) * 3 * weight[row] ** 2 + 0.01 * weight[row]
            total[row] += (grad**2).mean()
            weight[row] -= 0.1 * grad / (total[row].sqrt() + 1e-8)
    torch.testing.assert_close(table.weight.detach(), weight)


def test_state_round_trip_continues_identically() -> None:
    table = make_table(40, 4)
    optimizer = CatchUpAdam(table, 1e-2, 1e-3)
    train(table, optimizer, 30, 8)
    optimizer.lr = 3e-3
    train(table, optimizer, 10, 8)  # rows lag behind steps of both rates
    other = make_table(40, 4, seed=9)
    other.load_state_dict(copy.deepcopy(table.state_dict()))
    restored = CatchUpAdam(other, 3e-3, 1e-3)
    restored.load_state_dict({k: v.clone() for k, v in optimizer.state_dict().items()}, optimizer.steps)
    train(table, optimizer, 30, 8)
    train(other, restored, 30, 8)
    assert torch.equal(table.weight, other.weight)


def test_evaluation_does_not_prepare_an_update() -> None:
    table = make_table(10, 4)
    optimizer = CatchUpAdam(table, 1e-2, 1e-3)
    table.eval()
    table(torch.tensor([1]))
    table.train()
    with torch.no_grad():
        table(torch.tensor([2]))
    assert optimizer._looked == []


# -- rows that move or are made anew ----------------------------------------------------------------------------------

OPTIMIZERS = [SGD, RowwiseAdagrad, CatchUpAdam]


def rows_of_steps(steps: int, rows: int) -> list[Tensor]:
    g = torch.Generator().manual_seed(5)
    return [torch.randint(rows, (4,), generator=g) for _ in range(steps)]


def pull(table: EmbeddingTable, optimizer: TableOptimizer, rows: Tensor, names: Tensor) -> None:
    """A step on ``rows``, whose gradients depend on the rows' ``names``."""
    (table(rows) * torch.sin(names[:, None] + torch.arange(4))).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_row_that_moves_trains_on_as_if_it_had_always_been_there(cls: type[TableOptimizer]) -> None:
    """Against a table whose rows were permuted from the start; rows lag behind when they move."""
    place = torch.tensor([3, 1, 4, 0, 2, 5])  # where each row goes; 1 and 5 stay
    moved, permuted = make_table(6, 4), make_table(6, 4)
    permuted.weight.data[place] = moved.weight.data.clone()
    a, b = cls(moved, 0.1, 1e-2), cls(permuted, 0.1, 1e-2)
    for step, names in enumerate(rows_of_steps(40, 6)):
        if step == 20:
            there = (place != torch.arange(6)).nonzero().view(-1)
            moved.move(there, place[there])
        pull(moved, a, names if step < 20 else place[names], names)
        pull(permuted, b, place[names], names)
    for optimizer in (a, b):
        optimizer.catch_up()
    torch.testing.assert_close(moved.weight, permuted.weight, rtol=0, atol=0)
    for mine, theirs in zip(a.row_state(), b.row_state()):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_copy_of_a_row_leaves_the_row_as_it_is(cls: type[TableOptimizer]) -> None:
    table = make_table(6, 4)
    optimizer = cls(table, 0.1, 1e-2)
    for names in rows_of_steps(20, 6):
        pull(table, optimizer, names, names)
    table.move(torch.tensor([2, 2]), torch.tensor([0, 5]))
    for array in (table.weight.detach(), *optimizer.row_state()):
        assert torch.equal(array[0], array[2])
        assert torch.equal(array[5], array[2])


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_row_made_anew_has_its_initial_values_and_no_past(cls: type[TableOptimizer]) -> None:
    table = EmbeddingTable(6, 4, [RowInit(2, 1e-3), RowInit(4, 1.0, lambda rows: rows.fill_(7))])
    optimizer = cls(table, 0.1, 1e-2)
    for names in rows_of_steps(20, 6):
        pull(table, optimizer, names, names)
    others = table.current(torch.tensor([1, 2, 4]))
    table.reset(torch.tensor([5, 0, 3]))
    assert table.weight[0].detach().abs().max() <= 3**0.5 * 1e-3
    assert table.current(torch.tensor([3, 5])).tolist() == [[7.0] * 4] * 2  # no step missed
    torch.testing.assert_close(table.current(torch.tensor([1, 2, 4])), others, rtol=0, atol=0)
    if cls is CatchUpAdam:
        assert not optimizer.exp_avg[[0, 3, 5]].any()
        assert not optimizer.exp_avg_sq[[0, 3, 5]].any()
    given = torch.arange(8.0).view(2, 4)
    table.reset(torch.tensor([2, 4]), given)
    assert torch.equal(table.current(torch.tensor([2, 4])), given)
    if cls is CatchUpAdam:
        assert not optimizer.exp_avg[[2, 4]].any()
    # It trains on as a row of the same values would that was never looked up before.
    pull(table, optimizer, torch.tensor([3]), torch.tensor([3]))
    assert (table.weight[3] != 7).any()


def test_rows_stay_while_a_gradient_waits() -> None:
    table = make_table(6, 4)
    CatchUpAdam(table, 0.1, 1e-2)
    table(torch.tensor([1])).sum().backward()
    for change in (lambda: table.move(torch.tensor([0]), torch.tensor([1])), lambda: table.reset(torch.tensor([0]))):
        with pytest.raises(RuntimeError, match="while a gradient waits for its step"):
            change()
