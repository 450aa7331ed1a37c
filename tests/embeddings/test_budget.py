"""Budgets: how bytes are shared between tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, TableSpec, backend_registry
from recsys_emb.embeddings.budget import plan_backend, water_fill
from recsys_emb.errors import UserError


def test_unknown_option_names_the_key_and_the_allowed_ones() -> None:
    spec = GroupSpec((TableSpec("t", 10),), 4)
    with pytest.raises(UserError, match=r"options.seeds: unknown key \(did you mean 'seed'\?\); allowed: "):
        plan_backend("hash", spec, options={"seeds": 1})


def test_a_backend_that_does_not_look_at_the_budget_is_held_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(EmbeddingBackend[BackendConfig]):
        def __init__(self, spec: GroupSpec, config: BackendConfig, device: Any = None) -> None:
            super().__init__(spec, config, device)
            self.weight = nn.Parameter(torch.zeros(25, spec.embedding_dim, device=device))

        def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
            return self.weight[ids % 25]

    monkeypatch.setitem(backend_registry._entries, "fixed", Fixed)
    spec = GroupSpec((TableSpec("t", 1000),), 4)
    plan_backend("fixed", spec, 400)
    with pytest.raises(UserError, match="fixed cannot fit in 399 bytes; the least it can reach is 400 bytes"):
        plan_backend("fixed", spec, 399)


sizes = st.lists(st.tuples(st.integers(1, 10**9), st.floats(0, 1)), min_size=1, max_size=30)


@given(sizes, st.floats(0, 1.2), st.floats(0, 1))
def test_water_fill_keeps_its_promises(tables: list[tuple[int, float]], part: float, balance: float) -> None:
    full = [n for n, _ in tables]
    least = [max(1, int(n * f)) for n, f in tables]
    total = sum(least) + int(part * (sum(full) - sum(least)))
    shares = water_fill(full, least, total, balance)
    assert all(lo <= s <= n for lo, s, n in zip(least, shares, full))
    assert sum(shares) <= total
    if part <= 1:
        assert total - sum(shares) <= len(full)  # nothing but the rounding is left
    order = sorted(range(len(full)), key=full.__getitem__)
    if all(lo == 1 for lo in least):
        assert [shares[i] for i in order] == sorted(shares)


def test_water_fill_fills_small_tables_first() -> None:
    assert water_fill([10, 100, 10_000], [1, 1, 1], 1110, 0) == [10, 100, 1000]
    assert water_fill([10, 100, 10_000], [1, 1, 1], 1011, 1) == [1, 10, 1000]
    assert water_fill([4, 10_000, 1_000_000], [1, 1, 1], 3304, 0.5) == [4, 300, 3000]  # 3 sqrt(N)
    assert water_fill([10, 20], [1, 1], 30, 0.5) == [10, 20]
