"""hash, multi_hash and unified against lookups written out id by id."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recsys_emb.embeddings.backends.hash import HashBackend, HashConfig
from recsys_emb.embeddings.backends.multi_hash import MultiHashBackend, MultiHashConfig
from recsys_emb.embeddings.backends.unified import UnifiedBackend, UnifiedConfig
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import min_bytes, plan_backend
from recsys_emb.embeddings.hashing import hash_ids, seeds

SPEC = GroupSpec((TableSpec("a", 3000), TableSpec("b", 20), TableSpec("c", 500)), 6)


def rows_of(backend: HashBackend | MultiHashBackend | UnifiedBackend, table: int) -> Tensor:
    return torch.cat(list(backend.rows(table)))


def by_hand(ids: int, rows: int, seed: Tensor) -> list[int]:
    """The row of every id, one at a time."""
    return [int(hash_ids(torch.tensor(i), rows, seed)) for i in range(ids)]


def test_hash_gives_the_hashed_row_and_collides_as_often_as_the_hash() -> None:
    backend = HashBackend(SPEC, HashConfig(rows=(200, 20, 50)))
    weight = backend.parts["hashed"].table.weight
    for k, (table, rows, start) in enumerate([(0, 200, 0), (2, 50, 200)]):
        hashed = by_hand(SPEC.tables[table].num_embeddings, rows, seeds(2)[k])
        vectors = rows_of(backend, table)
        assert torch.equal(vectors, weight[torch.tensor(hashed) + start])
        assert len(vectors.unique(dim=0)) == len(set(hashed)) <= rows
    assert len(rows_of(backend, 1).unique(dim=0)) == 20  # kept full


def test_seeds_change_which_ids_collide() -> None:
    a, b = (HashBackend(SPEC, HashConfig(rows=(200, 20, 50), seed=s)).parts["hashed"].transform for s in (0, 1))
    ids, counts = torch.arange(500), [500, 0]
    assert (a(ids, counts) == b(ids, counts)).float().mean() < 0.03


def test_multi_hash_sums_its_probes_and_tells_more_ids_apart() -> None:
    backend = MultiHashBackend(SPEC, MultiHashConfig(rows=(200, 20, 50), probes=2))
    weight = backend.parts["hashed"].table.weight
    first, second = (by_hand(3000, 200, s) for s in seeds(4)[:2])
    vectors = rows_of(backend, 0)
    torch.testing.assert_close(vectors, weight[first] + weight[second])
    # Equal vectors need equal pairs: about 3000^2 / 2 / (200^2 / 2) pairs of ids instead of all in 200 rows.
    assert len(set(zip(first, second))) > 2500


def test_importance_weights_scale_each_probe() -> None:
    backend = MultiHashBackend(SPEC, MultiHashConfig(rows=(200, 20, 50), probes=2, importance=True))
    importance = backend.parts["hashed"].combine.table.weight
    before = rows_of(backend, 0)
    weight = backend.parts["hashed"].table.weight
    with torch.no_grad():
        importance[7] = torch.tensor([2.0, -1.0])
    rows = [int(hash_ids(torch.tensor(7), 200, s)) for s in seeds(4)[:2]]
    after = rows_of(backend, 0)
    torch.testing.assert_close(after[7], 2 * weight[rows[0]] - weight[rows[1]])
    assert torch.equal(after[8:], before[8:])
    assert sum(line.bytes for line in backend.describe() if line.table == "c") == 4 * (50 * 6 + 500 * 2)


@pytest.mark.parametrize("backend", ["hash", "multi_hash"])
@pytest.mark.parametrize("ratio", [0.7, 0.31, 0.1, 0.02])
def test_less_than_a_row_of_a_budget_is_left(backend: str, ratio: float) -> None:
    budget = int(ratio * SPEC.full_bytes)
    cls, config = plan_backend(backend, SPEC, budget)
    assert budget - 4 * 6 < cls(SPEC, config).serving_bytes() <= budget


def test_importance_weights_are_learned_where_they_take_half_of_the_budget_or_less() -> None:
    weights = 4 * 2 * SPEC.num_embeddings
    for budget, expected in ((2 * weights, True), (2 * weights - 1, False)):
        _, config = plan_backend("multi_hash", SPEC, budget)
        assert config.importance is expected
    least = min_bytes("multi_hash", SPEC)
    assert least == min_bytes("multi_hash", SPEC, options={"importance": False}) == 4 * 6 * 3
    assert plan_backend("multi_hash", SPEC, least)[1].rows == (1, 1, 1)
    hashed = GroupSpec((TableSpec("a", 2**63 - 1, hashed=True),), 6)
    assert plan_backend("multi_hash", hashed, 10_000)[1].importance is False


def test_unified_probes_one_table_with_each_fields_own_hashes() -> None:
    backend = UnifiedBackend(SPEC, UnifiedConfig(rows=97, probes=4))  # 6 columns from 4 rows of 2, two cut off
    weight = backend.parts["shared"].table.weight
    assert weight.shape == (97, 2)
    probe_seeds = seeds(12).view(3, 4)
    for t in range(3):
        parts = [weight[by_hand(20, 97, s)] for s in probe_seeds[t]]
        assert torch.equal(rows_of(backend, t)[:20], torch.cat(parts, dim=1)[:, :6])
    assert not torch.equal(rows_of(backend, 0)[:20], rows_of(backend, 1))
