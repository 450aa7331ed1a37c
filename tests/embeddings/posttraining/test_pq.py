"""Rows as codes: packing, k-means, forms and their bytes, and what a budget buys."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, TableSpec
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.embeddings.posttraining._codebooks import balanced
from recsys_emb.embeddings.posttraining._kmeans import kmeans, lloyd, nearest
from recsys_emb.embeddings.posttraining._packing import pack, packed_bytes, unpack
from recsys_emb.embeddings.posttraining.base import ErrorCost
from recsys_emb.errors import BudgetTooSmall, UserError
from recsys_emb.native import codes as native

SIZES = {"user": 300, "item": 90, "day": 1}
SPEC = GroupSpec(tuple(TableSpec(n, k, init_std=1.0) for n, k in SIZES.items()), 9, first_order=True)
COUNTS = {"user": np.r_[1, np.arange(299)[::-1]], "item": np.r_[5, np.full(60, 40), np.zeros(29, int)], "day": np.r_[9]}
IDS = torch.cat([torch.arange(n) for n in SIZES.values()])


def trained(spec: GroupSpec = SPEC) -> EmbeddingBackend[Any]:
    torch.manual_seed(1)
    cls, config = plan_backend("full", spec)
    return cls(spec, config)


def rows_of(backend: EmbeddingBackend[Any], table: int) -> torch.Tensor:
    return torch.cat(list(backend.rows(table))).detach()


def weighted_error(made: EmbeddingBackend[Any], full: EmbeddingBackend[Any]) -> float:
    return sum(
        float(((rows_of(made, t) - rows_of(full, t)).square().sum(1) * torch.from_numpy(COUNTS[name])).sum())
        for t, name in enumerate(SIZES)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(1, 70), st.integers(0, 5), st.randoms(use_true_random=False))
def test_codes_are_packed_bit_after_bit(bits: int, n: int, before: int, random: Any) -> None:
    codes = [random.randrange(1 << bits) for _ in range(n)]
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    stream = "".join(f"{code:0{bits}b}"[::-1] for code in codes)
    stream += "0" * (-len(stream) % 8)
    assert packed.tolist() == [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]
    assert len(packed) == packed_bytes(n, bits)
    behind = torch.cat([torch.full((before,), 255, dtype=torch.uint8), packed])
    ids = torch.arange(n)
    found = unpack(behind, torch.full((n,), before), ids, torch.full((n,), bits))
    assert found.tolist() == codes


def test_kmeans_ends_where_scikit_learn_does_from_the_same_start_and_never_rises() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, weights = torch.randn(200, 4, generator=generator), torch.rand(200, generator=generator)
    start = rows[:6].clone()
    centres, error = lloyd(rows, weights, start, rounds=200)
    oracle = KMeans(6, init=start.numpy(), n_init=1, max_iter=200, tol=0).fit(
        rows.numpy(), sample_weight=weights.numpy()
    )
    assert error == pytest.approx(oracle.inertia_, rel=5e-3)
    errors = [lloyd(rows, weights, start, rounds)[1] for rounds in range(1, 12)]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(errors))
    cells, distance = nearest(rows, centres)
    brute = torch.cdist(rows, centres)
    assert torch.equal(cells, brute.argmin(1))
    torch.testing.assert_close(distance, brute.amin(1).square(), rtol=1e-4, atol=1e-5)


def test_weights_really_weigh_and_no_centre_is_left_empty() -> None:
    rows = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    generator = torch.Generator().manual_seed(0)
    (centre,) = kmeans(rows, torch.tensor([0.0, 0.0, 3.0, 1.0]), 1, generator).tolist()
    assert centre == pytest.approx([10.25])
    start = torch.tensor([[0.5], [10.5], [1e6]])  # nothing is nearest to the last one
    centres, error = lloyd(rows, torch.ones(4), start)
    assert len(nearest(rows, centres)[0].unique()) == 3
    assert error == pytest.approx(0.5)


@pytest.mark.parametrize("options", [{}, {"bits": 3}, {"codes": "product"}, {"codes": "product", "rotation": False}])
def test_more_bytes_err_less_and_no_byte_is_uncounted(options: dict[str, Any]) -> None:
    full, errors = trained(), []
    for ratio in (0.02, 0.05, 0.1, 0.3):
        made = compress(full, "pq", ratio, COUNTS, options)
        stored = sum(t.nbytes for t in made.state_dict().values())
        assert stored == made.serving_bytes() == sum(line.bytes for line in made.describe()) <= ratio * SPEC.full_bytes
        assert made.lookup(IDS, list(SIZES.values())).shape == (391, 9)
        errors.append(weighted_error(made, full))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("bits", [1, 2, 3, 5, 7, 8])
def test_another_residual_level_never_worsens_the_error_whatever_the_bits(bits: int) -> None:
    full, errors = trained(), []
    for levels in (1, 2, 3):
        made = compress(full, "pq", None, COUNTS, {"bits": bits, "levels": dict.fromkeys(("user", "item"), levels)})
        errors.append(weighted_error(made, full))
    assert errors == sorted(errors, reverse=True)


def test_ids_that_training_never_saw_take_no_code_of_their_own() -> None:
    made = compress(trained(), "pq", 0.1, COUNTS)
    rows = rows_of(made, 1)
    assert (rows[61:] == rows[0]).all()
    assert not (rows[1:61] == rows[0]).all(1).all()
    nobody = {**COUNTS, "item": np.zeros(90, int)}
    assert torch.isfinite(rows_of(compress(trained(), "pq", 0.1, nobody), 1)).all()


def test_errors_go_where_they_cost_least() -> None:
    full = trained()
    metric = torch.diag(torch.tensor([1.0, *[1e-4] * 8], dtype=torch.float64))
    costs = {name: ErrorCost(metric, torch.ones(n)) for name, n in SIZES.items()}
    told = compress(full, "pq", 0.05, COUNTS, {}, lambda: costs)
    plain = compress(full, "pq", 0.05, COUNTS)

    def first_column(made: EmbeddingBackend[Any]) -> float:
        wrong = (rows_of(made, 0) - rows_of(full, 0))[:, 0].square()
        return float((wrong * torch.from_numpy(COUNTS["user"])).sum())

    assert first_column(told) < 0.3 * first_column(plain)


def test_ids_whose_lookups_cost_more_err_less() -> None:
    full = trained()
    relative = torch.ones(300)
    relative[200:] = 1000  # ids that are seldom seen
    told = compress(full, "pq", 0.1, COUNTS, {}, lambda: {"user": ErrorCost(torch.eye(9).double(), relative)})
    plain = compress(full, "pq", 0.1, COUNTS)
    wrong = [(rows_of(made, 0) - rows_of(full, 0))[200:-1].square().sum() for made in (told, plain)]
    assert wrong[0] < 0.5 * wrong[1]


def test_a_table_that_costs_nothing_takes_one_row() -> None:
    free = ErrorCost(torch.zeros(9, 9, dtype=torch.float64), torch.ones(300))
    made = compress(trained(), "pq", 0.3, COUNTS, {}, lambda: {"user": free})
    assert made.describe()[0].bytes == 2 * 9


def test_a_budget_is_nearly_used_up() -> None:
    for ratio in (0.03, 0.1, 0.2):
        assert compress(trained(), "pq", ratio, COUNTS).serving_bytes() > 0.95 * ratio * SPEC.full_bytes


def test_axes_of_a_product_are_shared_out_so_that_parts_vary_alike() -> None:
    assert balanced([8.0, 4.0, 2.0, 1.0], [(0, 2), (2, 4)]) == [0, 3, 1, 2]  # 8 * 1 beside 4 * 2
    assert sorted(balanced([1.0, 0.0, 3.0, 2.0, 5.0], [(0, 1), (1, 3), (3, 5)])) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dim", [1, 8, 17])
def test_codes_are_looked_up_alike_in_torch_and_in_cpp(dim: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [700, 1, 40, 2000]
    full = trained(GroupSpec(tuple(TableSpec(f"t{i}", n) for i, n in enumerate(sizes)), dim))
    made = compress(full, "pq", 0.2, {f"t{i}": np.arange(n)[::-1] for i, n in enumerate(sizes)})
    counts = [600, 0, 3, 1500]
    ids = torch.cat([torch.randint(0, n, (count,)) for n, count in zip(sizes, counts)])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    fast = made.lookup(ids, counts)
    torch.set_num_threads(before)
    monkeypatch.setattr(native, "fits", lambda *_: False)
    torch.testing.assert_close(made.lookup(ids, counts), fast)
    whole = torch.cat([rows_of(made, t)[part] for t, part in enumerate(ids.split(counts))])
    torch.testing.assert_close(whole, fast)


def test_the_least_is_one_row_for_each_table() -> None:
    with pytest.raises(BudgetTooSmall) as caught:
        compress(trained(), "pq", 20, COUNTS)
    assert caught.value.min_bytes == 3 * 2 * 9
    made = compress(trained(), "pq", f"{caught.value.min_bytes}B", COUNTS)
    mean = np.average(rows_of(trained(), 0).numpy(), axis=0, weights=COUNTS["user"] + 0.1)
    np.testing.assert_allclose(rows_of(made, 0)[7], mean, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 9}, "options.bits: .*less than or equal to 8, got 9"),
        ({"levels": {"shop": 2}}, "options.levels.shop: no such table; allowed: user, item, day"),
        ({"levels": {"user": 99}}, r"options.levels.user: 99; allowed: 0 \(one row for all\) to 12"),
        ({"tables": []}, "options.tables: pq finds it by itself"),
    ],
)
def test_mistakes_say_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compress(trained(), "pq", 0.1, COUNTS, options)
