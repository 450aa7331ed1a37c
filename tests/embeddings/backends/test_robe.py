"""robe against a loop over the floats of one flat array."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_emb.embeddings.backends.robe import RobeBackend, RobeConfig
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import min_bytes, plan_backend
from recsys_emb.embeddings.hashing import hash_ids, mix, seeds
from recsys_emb.errors import UserError

SIZES = (40, 5)


def by_hand(array: torch.Tensor, table: int, i: int, dim: int, config: RobeConfig) -> torch.Tensor:
    """One id's vector, float after float."""
    width = min(config.chunk, dim)
    chunks = -(-dim // width)
    places, signs = seeds(2 * chunks, 1).view(2, chunks)
    key = mix(torch.tensor(i) ^ seeds(len(SIZES))[table])
    columns = []
    for d in range(dim):
        c, z = d // width, d % width
        start = int(hash_ids(key, len(array), places[c]))
        flip = config.sign and int(hash_ids(key, 2, signs[c])) == 0
        value = array[(start + z) % len(array)]
        columns.append(-value if flip else value)
    return torch.stack(columns)


@settings(deadline=None, max_examples=25)
@given(dim=st.integers(1, 11), chunk=st.integers(1, 8), rows=st.integers(1, 6), sign=st.booleans(), data=st.data())
def test_vectors_and_gradients_are_those_of_a_loop_over_a_flat_array(
    dim: int, chunk: int, rows: int, sign: bool, data: st.DataObject
) -> None:
    spec = GroupSpec(tuple(TableSpec(f"t{i}", n) for i, n in enumerate(SIZES)), dim)
    config = RobeConfig(chunk=chunk, sign=sign, floats=rows * min(chunk, dim))
    backend = RobeBackend(spec, config)
    ids = [data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3)) for n in SIZES]
    scale = torch.randn(sum(map(len, ids)), dim)
    weight = backend.parts["shared"].table.weight

    flat = weight.detach().flatten().clone().requires_grad_()
    expected = torch.stack([by_hand(flat, t, i, dim, config) for t, some in enumerate(ids) for i in some])
    (expected * scale).sum().backward()

    found = backend(torch.tensor([i for some in ids for i in some]), [len(some) for some in ids])
    (found * scale).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(weight.grad.flatten(), flat.grad)


def test_chunks_start_at_any_float_and_flip_half_of_the_time() -> None:
    spec = GroupSpec((TableSpec("t", 4000),), 4)
    backend = RobeBackend(spec, RobeConfig(chunk=4, floats=40))
    array = torch.arange(1.0, 41)
    with torch.no_grad():
        backend.parts["shared"].table.weight.copy_(array.view(10, 4))
    first = torch.cat(list(backend.rows(0)))[:, 0]
    starts = torch.bincount(first.abs().long() - 1, minlength=40)
    assert len(starts) == 40
    assert (starts - 100).abs().max() < 50  # five standard deviations of a binomial of mean 100
    assert abs((first > 0).float().mean() - 0.5) < 0.04


def test_sizes_follow_the_budget_to_a_chunk() -> None:
    spec = GroupSpec((TableSpec("a", 10**6), TableSpec("b", 3)), 17)
    assert min_bytes("robe", spec) == 4 * 16
    for budget in (64, 1000, 10**6):
        cls, config = plan_backend("robe", spec, budget)
        assert budget - 64 < cls(spec, config, "meta").serving_bytes() <= budget
    assert plan_backend("robe", spec, 10**9)[1].floats == 1_000_003 * 17 // 16 * 16  # no more than the full tables
    with pytest.raises(UserError, match=r"^options\.floats: 50; allowed: multiples of the chunk, 16"):
        plan_backend("robe", spec, options={"floats": 50})
