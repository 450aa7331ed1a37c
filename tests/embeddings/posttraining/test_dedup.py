"""dedup: true duplicates cost nothing, budgets are used up, and what is stored are means of what it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_emb.embeddings.backends.full import FullBackend
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, TableSpec
from recsys_emb.embeddings.finetune import TrainableForm
from recsys_emb.embeddings.posttraining import compress, min_compressed_bytes
from recsys_emb.embeddings.posttraining._lsh_blocks import LSHBlocks
from recsys_emb.embeddings.posttraining.dedup import Dedup
from recsys_emb.errors import BudgetTooSmall

SIZES = (203, 30)
SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n) for i, n in enumerate(SIZES)), 5)
STATS = {t.name: np.arange(t.num_embeddings, 0, -1) ** 2 for t in SPEC.tables}


def trained(seed: int = 0) -> FullBackend:
    torch.manual_seed(seed)
    return FullBackend(SPEC, BackendConfig())


def rows_of(backend: EmbeddingBackend[Any], table: int) -> torch.Tensor:
    return torch.cat(list(backend.rows(table)))


def made_of(backend: FullBackend, budget: int, **options: Any) -> Dedup:
    made = compress(backend, "dedup", f"{budget}B", STATS, options)
    assert isinstance(made, Dedup)
    return made


@pytest.mark.parametrize("block", [1, 4])
def test_true_duplicates_are_stored_once_and_read_back_exactly(block: int) -> None:
    backend = trained()
    different = torch.randn(7, block, 5)
    kinds = torch.randint(7, (SIZES[0],), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for t, start in ((0, 0), (1, 9)):
            rows = different[kinds[start : start + -(-SIZES[t] // block)]].flatten(0, 1)
            backend.plain_rows(t).copy_(rows[: SIZES[t]])
    pointers = sum(-(-n // block) for n in SIZES)
    # The last block of the smaller table may have fewer rows, which makes it different from all others.
    made = made_of(backend, 4 * 5 * block * 9 + pointers, block=block, shared=1.0)
    for t in (0, 1):
        torch.testing.assert_close(rows_of(made, t), rows_of(backend, t))


@settings(deadline=None, max_examples=25)
@given(ratio=st.floats(0.02, 1), block=st.sampled_from([1, 2, 4, 8]), shared=st.floats(0, 1), seed=st.integers(0, 9))
def test_a_budget_is_used_up_and_what_is_stored_are_means(ratio: float, block: int, shared: float, seed: int) -> None:
    backend = trained(seed)
    least = min_compressed_bytes(SPEC, "dedup", STATS, {"block": block})
    budget = max(least, int(ratio * SPEC.full_bytes))
    made = made_of(backend, budget, block=block, shared=shared, seed=seed)
    assert made.serving_bytes() <= budget
    stored = made.config.stored
    if stored < sum(made.blocks):
        assert budget < made.serving_bytes() + 4 * 5 * block + sum(made.blocks)  # one more block would not fit
    members: dict[tuple[int, int], list[tuple[float, torch.Tensor]]] = {}
    for t, n in enumerate(SIZES):
        rows = rows_of(backend, t)
        for i in range(n):
            at = int(made.pointers[int(made.starts[t]) + i // block]), i % block
            members.setdefault(at, []).append((float(STATS[f"t{t}"][i]), rows[i]))
    assert {group for group, _ in members} == set(range(stored))
    for (group, place), some in members.items():
        mean = sum(w * row.double() for w, row in some) / sum(w for w, _ in some)
        torch.testing.assert_close(made.values[group * block + place], mean.float())


def test_the_least_is_one_block() -> None:
    with pytest.raises(BudgetTooSmall) as caught:
        compress(trained(), "dedup", "10B")
    # Blocks of 4 rows: 80 bytes, and a byte for each of 51 + 8; 40 + 117 for 2 rows, 160 + 30 for 8.
    assert caught.value.min_bytes == 4 * 5 * 4 + 51 + 8
    made = compress(trained(), "dedup", f"{caught.value.min_bytes}B")
    assert (made.serving_bytes(), made.config.stored) == (139, 1)


def test_near_rows_are_merged_before_far_ones_and_frequent_ones_hardly_change() -> None:
    backend = trained()
    with torch.no_grad():  # pairs of like rows, id and id + 1, and the pairs far from each other
        for t, n in enumerate(SIZES):
            pairs = torch.randn(n // 2 + 1, 5).repeat_interleave(2, dim=0)[:n]
            backend.plain_rows(t).copy_(pairs + 1e-4 * torch.randn(n, 5))
    groups = LSHBlocks(backend, 1, STATS).near(117, 8, seed=0)
    assert int(groups.max()) + 1 > 100
    together = (groups[:202:2] == groups[1:202:2]).float().mean()
    apart = len(set(groups[:202:2].tolist())) / 101
    assert together > 0.9
    assert apart > 0.9

    backend = trained()
    made = made_of(backend, 4 * 5 * 60 + sum(SIZES), block=1)
    errors = (rows_of(made, 0) - rows_of(backend, 0)).square().sum(1)
    assert errors[:15].mean() < 0.1 * errors[100:].mean()


def test_stored_rows_are_trained_on_and_pointers_stay() -> None:
    made = made_of(trained(), 1500)
    pointers, values = made.pointers.clone(), made.values.clone()
    form = TrainableForm(made)
    assert [p.shape for p in form.parameters()] == [values.shape]
    (form(torch.tensor([3, 3, 5]), [2, 1]) * torch.tensor([[1.0], [2.0], [4.0]])).sum().backward()
    with torch.no_grad():
        for p in form.parameters():
            p -= p.grad
    served = form.compact()
    assert served is made
    assert torch.equal(served.pointers, pointers)
    assert float((values - served.values).sum()) == pytest.approx(5 * (1 + 2 + 4), rel=1e-4)
