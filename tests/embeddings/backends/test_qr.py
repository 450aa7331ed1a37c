"""qr: mixed radix is exact for large ids, every id keeps its own digits, radices are sensible."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_emb.embeddings.backends.qr import MixedRadix, QRBackend, QRConfig, _smallest, radices_for
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.errors import UserError


def digits(ids: list[int], radices: tuple[int, ...]) -> list[list[int]]:
    transform = MixedRadix(torch.tensor([radices]))
    return (transform(torch.tensor(ids), torch.tensor([len(ids)])) - transform.starts).tolist()


@settings(deadline=None)
@given(st.data(), st.integers(2, 2**33), st.integers(2, 8), st.floats(0, 1))
def test_every_id_up_to_2_33_has_its_own_digits(data: st.DataObject, n: int, partitions: int, part: float) -> None:
    smallest = sum(_smallest(n, partitions))
    rows = smallest + int(part * max(0, n - smallest))
    radices = radices_for(n, partitions, rows)
    assert len(radices) == partitions
    assert sum(radices) <= rows
    assert math.prod(radices) >= n
    ids = [0, n - 1, *data.draw(st.lists(st.integers(0, n - 1), max_size=8))]
    found = digits(ids, radices)
    for x, digit in zip(ids, found):
        assert all(0 <= d < m for d, m in zip(digit, radices))
        # The round trip proves uniqueness: the digits give the id back.
        assert sum(d * math.prod(radices[:j]) for j, d in enumerate(digit)) == x


def test_neighbours_above_the_precision_of_floats_stay_apart() -> None:
    ids = [2**33 - k for k in range(1, 200)]
    radices = radices_for(2**33, 2, 200_000)
    assert len({tuple(d) for d in digits(ids, radices)}) == 199


def test_radices_by_hand() -> None:
    assert _smallest(10_000, 2) == (100, 100)
    assert _smallest(1000, 3) == (10, 10, 10)
    assert radices_for(10_000, 2, 10_000) == (5000, 2)
    assert radices_for(10_000, 2, 2504) == (2500, 4)  # four collisions, as in the paper
    assert radices_for(10_000, 2, 2503) == (2000, 5)
    assert radices_for(1000, 3, 71) == (63, 4, 4)
    assert radices_for(1000, 3, 70) == (40, 5, 5)


@pytest.mark.parametrize("combine", ["mult", "add", "concat"])
def test_vectors_are_the_combined_rows(combine: str) -> None:
    spec = GroupSpec((TableSpec("a", 30), TableSpec("b", 3), TableSpec("c", 100)), 5)
    config = QRConfig(combine=combine, radices=((5, 3, 2), (3,), (10, 5, 2)))  # type: ignore[arg-type]
    backend = QRBackend(spec, config)
    weight = backend.parts["split"].table.weight
    rows = torch.cat(list(backend.rows(2)))
    for x in range(100):
        a, b, c = weight[10 + x % 10], weight[10 + 10 + x // 10 % 5], weight[10 + 10 + 5 + x // 50]
        expected = {"mult": a * b * c, "add": a + b + c, "concat": torch.cat([a, b, c])[:5]}[combine]
        torch.testing.assert_close(rows[x], expected)
    assert len(rows.unique(dim=0)) == 100


def test_a_small_budget_takes_more_partitions() -> None:
    spec = GroupSpec((TableSpec("a", 10**6),), 16)
    used = [len(plan_backend("qr", spec, 4 * 16 * rows)[1].radices[0]) for rows in (250_000, 2000, 1999, 301, 300, 130)]
    assert used == [2, 2, 3, 3, 3, 4]
    with pytest.raises(UserError, match="the least it can reach is 128,000 bytes"):  # 2 sqrt(N) rows
        plan_backend("qr", spec, 4 * 16 * 1999, options={"partitions": 2})


def test_listed_ids_take_no_modulus() -> None:
    with pytest.raises(UserError, match=r"options\.modulus: for 63-bit hashed ids only"):
        plan_backend("qr", GroupSpec((TableSpec("t", 1000),), 4), options={"modulus": 100})


def test_hashed_ids_need_a_modulus() -> None:
    spec = GroupSpec((TableSpec("a", 2**63 - 1, hashed=True),), 16)
    with pytest.raises(UserError, match=r"options\.modulus: missing"):
        plan_backend("qr", spec, 10**6)
    cls, config = plan_backend("qr", spec, 10**6, options={"modulus": 50_000})
    ids = torch.randint(0, 2**63 - 2, (20_000,), generator=torch.Generator().manual_seed(0))
    vectors = cls(spec, config)(ids, torch.tensor([20_000]))
    expected = 50_000 * (1 - (1 - 1 / 50_000) ** 20_000)  # buckets that 20,000 random ids fall into
    assert abs(len(vectors.unique(dim=0)) - expected) < 300
