"""cafe: the sketch against exact counts and a loop, and what happens to a row that changes owners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from recsys_emb.embeddings import make_embedding_bag_collection
from recsys_emb.embeddings.backends._hot_sketch import EMPTY, SLOTS, HotSketch
from recsys_emb.embeddings.backends.cafe import CafeBackend, CafeConfig
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.hashing import hash_ids
from recsys_emb.errors import UserError
from recsys_emb.training.optimizers import TABLE_OPTIMIZERS

SPEC = GroupSpec((TableSpec("a", 300), TableSpec("b", 4), TableSpec("c", 200)), 6)
COUNTS = [300, 4, 200]


def backend_of(**options: Any) -> CafeBackend:
    torch.manual_seed(0)
    return CafeBackend(SPEC, CafeConfig(**{"rows": (20, 4, 10), "owners": 8, "every": 1, "slots": 8.0, **options}))


def all_rows(backend: Any) -> torch.Tensor:
    return torch.cat([row for t in range(3) for row in backend.rows(t)])


# -- the sketch -------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    batches=st.lists(st.dictionaries(st.integers(0, 60), st.integers(1, 9), max_size=12), max_size=8),
    buckets=st.integers(1, 4),
)
def test_slots_are_those_of_a_loop(batches: list[dict[int, int]], buckets: int) -> None:
    sketch = HotSketch(SLOTS * buckets, None)
    slots = [[[EMPTY, 0] for _ in range(SLOTS)] for _ in range(buckets)]
    for batch in batches:
        sketch.add(torch.tensor(list(batch), dtype=torch.int64), torch.tensor(list(batch.values())).float())
        new: list[list[tuple[int, int, int]]] = [[] for _ in range(buckets)]
        for place, (key, score) in enumerate(batch.items()):
            b = int(hash_ids(torch.tensor(key), buckets, 0))
            mine = [slot for slot in slots[b] if slot[0] == key]
            if mine:
                mine[0][1] += score
            else:
                new[b].append((-score, place, key))
        for b, some in enumerate(new):
            for score, _, key in sorted(some)[:SLOTS]:
                lowest = min(slots[b], key=lambda slot: slot[1])
                lowest[:] = [key, lowest[1] - score]
    expected = torch.tensor(slots)
    assert torch.equal(sketch.keys, expected[:, :, 0])
    assert torch.equal(sketch.scores, expected[:, :, 1].float())
    found = sketch.hottest(5, torch.zeros(0, dtype=torch.int64), 1.0).tolist()
    assert found == [k for k, _ in sorted(expected.flatten(0, 1).tolist(), key=lambda x: (-x[1], x[0])) if k >= 0][:5]


@pytest.mark.parametrize(("slots", "recall"), [(8, 0.85), (4, 0.6)])
def test_the_truly_hottest_of_a_zipf_stream_stay(slots: int, recall: float) -> None:
    random, ids, hot = np.random.default_rng(0), 100_000, 500
    shares = np.arange(1, ids + 1) ** -1.05
    stream = random.permutation(ids)[random.choice(ids, 400_000, p=shares / shares.sum())]
    sketch = HotSketch(slots * hot, None)
    for batch in np.array_split(stream, 200):
        keys, counts = np.unique(batch, return_counts=True)
        sketch.add(torch.from_numpy(keys), torch.from_numpy(counts).float())
    truth = np.bincount(stream, minlength=ids)
    exact = np.argsort(-truth, kind="stable")
    found = sketch.hottest(hot, torch.zeros(0, dtype=torch.int64), 1.0).numpy()
    assert len(np.intersect1d(found, exact[:hot])) / hot > recall
    assert set(exact[:100]) <= set(found)
    keys, scores = sketch.keys.flatten().numpy(), sketch.scores.flatten().numpy()
    early = np.isin(keys, exact[:100])
    assert early.sum() == 100
    assert (scores[early] >= 0.98 * truth[keys[early]]).all()  # what an id loses before it stays is little


# -- owners -----------------------------------------------------------------------------------------------------------


def step(backend: CafeBackend, optimizer: Any, ids: list[int], counts: list[int], number: int) -> torch.Tensor:
    """One step of training; the gradients of the looked-up vectors."""
    backend.train()
    scale = torch.randn(len(ids), 6, generator=torch.Generator().manual_seed(number)) + 1
    (backend(torch.tensor(ids), counts) * scale).sum().backward()
    backend.after_backward(number)
    optimizer.step()
    return scale


def test_scores_are_the_norms_of_gradients_summed_over_lookups() -> None:
    for score in ("gradient", "count"):
        backend = backend_of(score=score)
        optimizer = TABLE_OPTIMIZERS["sgd"](backend.shared.table, 0.1, 0.0)
        scale = step(backend, optimizer, [7, 7, 9, 7], [3, 0, 1], 0)
        norms = scale.norm(dim=1) if score == "gradient" else torch.ones(4)
        sketch, expected = backend.shared.sketch, {7: norms[:2].sum(), 9: norms[2], 300 + 7: norms[3]}
        found = dict(zip(sketch.keys[sketch.keys >= 0].tolist(), sketch.scores[sketch.keys >= 0]))
        assert found.keys() == expected.keys()  # of the hashed tables, one after the other; b has all its rows
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)


@pytest.mark.parametrize("rule", list(TABLE_OPTIMIZERS))
def test_a_moved_row_predicts_as_before_and_begins_its_optimizer_state(rule: str) -> None:
    backend = backend_of()
    part = backend.shared
    optimizer = TABLE_OPTIMIZERS[rule](part.table, 0.1, 1e-2)
    part.table.sparse_grad = True
    evicted = entered = 0
    random = np.random.default_rng(0)
    for number in range(40):
        low = 0 if number < 20 else 30  # others become hot half-way, with larger gradients
        ids = [*(low + random.integers(0, 12, 9)), *(low + random.integers(0, 5, 4))]
        for _ in range(1 if number < 20 else 3):
            step(backend, optimizer, [int(i) for i in ids], [9, 0, 4], number)
        optimizer.catch_up()
        before, owners = all_rows(backend), set(part.owner_keys.tolist())
        backend.after_step(number)
        after, now = all_rows(backend), set(part.owner_keys.tolist())
        gone = {k + (4 if k >= 300 else 0) for k in owners - now if k < 500}  # table b lies between a and c
        kept = torch.tensor([i for i in range(504) if i not in gone])
        assert torch.equal(before[kept], after[kept])
        evicted, entered = evicted + len(gone), entered + len(now - owners)
        fresh = part.owner_rows[torch.isin(part.owner_keys, torch.tensor(sorted(now - owners), dtype=torch.int64))]
        for state in optimizer.row_state():
            if state.is_floating_point():
                assert not state[fresh].any()
        assert sorted(part.owner_rows.tolist()) == list(range(8))
    assert evicted > 3
    assert entered > 11


def test_what_is_served_is_what_was_trained() -> None:
    for owners in (8, 0):
        backend = backend_of(owners=owners)
        planned = backend.serving_bytes()
        if owners:
            optimizer = TABLE_OPTIMIZERS["sgd"](backend.shared.table, 0.5, 0.0)
            step(backend, optimizer, [250, 3, 199], [2, 0, 1], 0)
            backend.after_step(0)
            assert backend.shared.owner_keys[:3].tolist() == [3, 250, 300 + 199]
        served = backend.eval().compact()
        assert torch.equal(all_rows(served), all_rows(backend))
        assert served.serving_bytes() == planned == sum(t.nbytes for t in served.state_dict().values())
        # 20 + 4 + 10 rows beside the owners, which a list of int32 names
        assert planned == 4 * 6 * (34 + owners) + 4 * owners
        if owners:
            assert {3, 250, 300 + 199} < set(served.shared.index.kept().tolist())


def test_rows_change_owners_in_a_loop_of_ones_own() -> None:
    tables = [EmbeddingBagConfig(name="t", embedding_dim=6, num_embeddings=500, feature_names=["t"])]
    collection = make_embedding_bag_collection(tables, "cafe", budget=0.2, every=2)
    optimizer = torch.optim.SGD(collection.parameters(), 0.1)
    hot = [7, 90, 400]
    for number in range(4):
        kjt = KeyedJaggedTensor(["t"], torch.tensor([*hot, number]), lengths=torch.ones(4, dtype=torch.int64))
        collection(kjt).values().square().sum().backward()
        collection.after_backward(number)
        optimizer.step()
        optimizer.zero_grad()
        collection.after_step(number)
        collection.after_epoch(number)
        owners = set(collection.groups.backends[0].shared.owner_keys.tolist())
        assert (set(hot) <= owners) == (number > 0)


def test_owners_and_rows_go_together() -> None:
    with pytest.raises(UserError, match=r"options\.rows: missing; owners and rows go together"):
        plan_backend("cafe", SPEC, options={"owners": 5})
    with pytest.raises(UserError, match=r"options\.owners: 500; allowed: 0 to 470, with these rows"):
        plan_backend("cafe", SPEC, options={"owners": 500, "rows": [20, 4, 10]})
