"""tt_rec against cores multiplied out element by element."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_emb.embeddings.backends.tt_rec import TTRecBackend, TTRecConfig, equal_radices
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend


@settings(deadline=None, max_examples=25)
@given(sizes=st.tuples(st.integers(1, 60), st.integers(1, 60)), dim=st.integers(1, 12), rank=st.integers(1, 4))
def test_rows_are_the_cores_multiplied_out(sizes: tuple[int, int], dim: int, rank: int) -> None:
    spec = GroupSpec(tuple(TableSpec(f"t{i}", n) for i, n in enumerate(sizes)), dim)
    backend = TTRecBackend(spec, TTRecConfig(ranks=(rank, rank)))
    part = backend.parts[f"rank_{rank}"]
    d1, d2, d3 = equal_radices(dim)
    g1 = part.table.weight.view(-1, d1, rank).double()
    g2 = part.middle.weight.view(-1, rank, d2, rank).double()
    g3 = part.last.weight.view(-1, rank, d3).double()
    begin = torch.zeros(3, dtype=torch.int64)
    for t, n in enumerate(sizes):
        n1, n2, n3 = equal_radices(n)
        found = torch.cat(list(backend.rows(t))).tolist()
        for i, j in product(range(n), range(dim)):
            i1, i2, i3 = begin + torch.tensor([i % n1, i // n1 % n2, i // n1 // n2])
            j1, j2, j3 = j // d3 // d2, j // d3 % d2, j % d3
            expected = g1[i1, j1] @ g2[i2, :, j2] @ g3[i3, :, j3]
            assert found[i][j] == pytest.approx(expected.item(), rel=1e-4, abs=1e-7)
        begin += torch.tensor([n1, n2, n3])


def test_an_id_that_comes_twice_is_multiplied_out_once_and_its_gradients_add_up() -> None:
    torch.manual_seed(0)
    backend = TTRecBackend(GroupSpec((TableSpec("t", 50),), 6), TTRecConfig(ranks=(3,)))
    ids, scale = torch.tensor([7, 9, 7, 7, 9]), torch.randn(5, 6)
    (backend(ids, [5]) * scale).sum().backward()
    together = [p.grad.clone() for p in backend.parameters()]
    backend.zero_grad()
    for i, s in zip(ids, scale):
        (backend(i[None], [1]) * s).sum().backward()
    for a, b in zip(together, [p.grad for p in backend.parameters()]):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("rank", [1, 4, 32])
def test_elements_start_with_the_variance_of_a_full_table(rank: int) -> None:
    spec = GroupSpec((TableSpec("a", 5000, init_std=0.3), TableSpec("b", 3000, init_std=0.02)), 16)
    stds = []
    for seed in range(20):
        torch.manual_seed(seed)
        backend = TTRecBackend(spec, TTRecConfig(ranks=(rank, rank)))
        stds.append([torch.cat(list(backend.rows(t))).square().mean() for t in (0, 1)])
    mean = torch.tensor(stds).mean(0).sqrt()
    torch.testing.assert_close(mean, torch.tensor([0.3, 0.02]), rtol=0.1, atol=0)


@given(st.integers(1, 10**9))
def test_radices_are_as_equal_as_they_can_be(n: int) -> None:
    radices = equal_radices(n)
    assert math.prod(radices) >= n
    assert sum(radices) <= 3 * math.ceil(n ** (1 / 3) - 1e-9)


def test_radices_by_hand() -> None:
    assert equal_radices(1) == (1, 1, 1)
    assert equal_radices(16) == (4, 2, 2)  # none left over, where 3 x 3 x 2 would have two
    assert equal_radices(1000) == (10, 10, 10)


def test_the_rank_follows_the_budget() -> None:
    spec = GroupSpec((TableSpec("large", 10**6), TableSpec("small", 100)), 16)
    # Floats at rank R: 100 (4 + 2) R + 100 * 2 R^2 and (5 * 4 + 5 * 2) R + 4 * 2 R^2; the small table has 1,600.
    eight, nine, ten = (600 * r + 200 * r * r for r in (8, 9, 10))
    for floats, ranks in (
        (eight + 1600, (8, 0)),
        (eight + 1599, (8, 9)),
        (nine + 1600, (9, 0)),
        (ten + 1100, (10, 10)),
    ):
        cls, config = plan_backend("tt_rec", spec, 4 * floats)
        assert config.ranks == ranks
        assert cls(spec, config, "meta").serving_bytes() <= 4 * floats
    assert plan_backend("tt_rec", spec, spec.full_bytes)[1].ranks == (0, 0)
