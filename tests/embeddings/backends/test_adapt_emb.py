"""adapt_emb: who owns a row, against a sort of all counts; what the others look up, against hash."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import EmbeddingBagConfig

from recsys_emb.embeddings import make_embedding_bag_collection
from recsys_emb.embeddings.backends.adapt_emb import AdaptEmbBackend
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.hashing import hash_ids, seeds
from recsys_emb.errors import UserError

SIZES = (400, 5, 300)
SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n) for i, n in enumerate(SIZES)), 6)


def backend_of(stats: dict[str, np.ndarray], budget: int, spec: GroupSpec = SPEC, **options: object) -> AdaptEmbBackend:
    cls, config = plan_backend("adapt_emb", spec, budget, stats, options)
    made = cls(spec, config)
    made.see_counts(stats)
    assert isinstance(made, AdaptEmbBackend)
    return made


def owners(stats: dict[str, np.ndarray], tables: list[int], number: int) -> list[tuple[int, int]]:
    """The (table, id) with the highest counts, sorted one by one; id 0 is as frequent as its table's most frequent."""
    ranked = []
    for t in tables:
        counts = stats[f"t{t}"].tolist()
        ranked += [(-(max(counts) if i == 0 else c), t, i) for i, c in enumerate(counts)]
    return sorted((t, i) for _, t, i in sorted(ranked)[:number])


@settings(deadline=None, max_examples=30)
@given(budget=st.integers(4 * 6 * 3, SPEC.full_bytes), falling=st.booleans(), seed=st.integers(0, 99))
def test_the_most_frequent_ids_own_rows_and_the_rest_are_hashed(budget: int, falling: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    stats = {t.name: random.zipf(1.3, t.num_embeddings).clip(max=10**6) for t in SPEC.tables}
    if falling:
        stats = {name: np.sort(counts)[::-1].copy() for name, counts in stats.items()}
    made = backend_of(stats, budget)
    assert made.serving_bytes() <= budget
    part = made.shared
    if part is None:
        return
    assert (part.index is None) or not falling
    weight, own = part.table.weight, {}
    for row, owner in enumerate(owners(stats, part.tables, part.first_hashed)):
        own[owner] = row
    start, hashes = part.first_hashed, seeds(len(part.tables))
    for k, t in enumerate(part.tables):
        vectors, shared = torch.cat(list(made.rows(t))), made.config.rows[t]
        for i in range(SIZES[t]):
            row = own.get((t, i), start + int(hash_ids(torch.tensor(i), shared, hashes[k])))
            assert torch.equal(vectors[i], weight[row])
        start += shared


def test_bytes_go_where_they_are_said_to() -> None:
    spec = GroupSpec((TableSpec("a", 10_000), TableSpec("b", 10)), 5)
    falling = {"a": np.arange(10_000, 0, -1), "b": np.arange(10, 0, -1)}
    mixed = {**falling, "a": np.random.default_rng(0).permutation(falling["a"])}
    for stats, index in ((falling, 0), (mixed, 12 * 157)):  # a bit for each id, in words of 64, and ranks
        made = backend_of(stats, 50_000, spec, frequent=0.5)
        (owned, _), (hashed, whole) = made.config.own, made.config.rows
        assert whole == 10
        assert abs(owned * 20 + index - (50_000 - 200) / 2) <= 20
        assert 50_000 - 20 < made.serving_bytes() == 20 * (owned + hashed + whole) + index <= 50_000
    _, config = plan_backend("adapt_emb", spec, 50_000)
    assert config.own == (0, 0)  # nobody knows who is frequent
    seen = {**falling, "a": np.where(np.arange(10_000) < 50, 7, 0)}
    assert plan_backend("adapt_emb", spec, 50_000, seen)[1].own == (50, 0)  # and ids that never occur own nothing


def test_a_collections_index_is_made_from_its_counts_and_made_again() -> None:
    stats = {"t0": np.random.default_rng(1).permutation(np.arange(300))}
    tables = [EmbeddingBagConfig(name="t0", embedding_dim=6, num_embeddings=300, feature_names=["t0"])]
    made = make_embedding_bag_collection(tables, "adapt_emb", budget=0.4, stats=stats)
    index = made.groups.backends[0].shared.index
    expected = [i for _, i in owners(stats, [0], index.rows)]
    assert index.kept().tolist() == expected
    index.fill(torch.arange(index.rows))
    made.reset_parameters()
    assert index.kept().tolist() == expected


def test_own_and_rows_go_together() -> None:
    with pytest.raises(UserError, match=r"options\.own: missing; own and rows go together"):
        plan_backend("adapt_emb", SPEC, options={"rows": [10, 5, 10]})
    with pytest.raises(UserError, match=r"options\.own: 290 for table 't2'; allowed: 0, or with its 10 rows below 300"):
        plan_backend("adapt_emb", SPEC, options={"rows": [10, 5, 10], "own": [0, 0, 290]})
