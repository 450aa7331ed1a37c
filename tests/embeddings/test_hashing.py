"""Hash functions: exact against Python's big integers, uniform, independent across seeds, no stripes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from recsys_emb.embeddings.hashing import MAX_ROWS, hash_ids, seeds

M64 = (1 << 64) - 1


def by_hand(x: int, rows: int, seed: int) -> int:
    z = (x ^ seed) & M64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
    return ((z ^ (z >> 31)) * rows) >> 64


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, MAX_ROWS), st.integers(-(2**63), 2**63 - 1))
def test_equals_big_integer_arithmetic(x: int, rows: int, seed: int) -> None:
    assert hash_ids(torch.tensor([x]), rows, seed).tolist() == [by_hand(x, rows, seed)]


def p_value(cells: np.ndarray) -> float:
    """Chi-square test that all cells are equally likely."""
    expected = cells.sum() / cells.size
    return float(chi2.sf(((cells - expected) ** 2 / expected).sum(), cells.size - 1))


IDS = {
    "consecutive": torch.arange(200_000),
    "stride of the table": torch.arange(200_000) * 997,
    "multiples of 2^20": torch.arange(200_000) << 20,
    "63-bit": torch.randint(0, 2**63 - 1, (200_000,), generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("rows", [7, 997, 1024])
def test_rows_are_equally_likely(ids: torch.Tensor, rows: int) -> None:
    for seed in seeds(3):
        counts = torch.bincount(hash_ids(ids, rows, seed), minlength=rows)
        assert len(counts) == rows
        assert 1e-4 < p_value(counts.numpy()) < 1 - 1e-4  # too even would be no hash either


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_functions_of_two_seeds_are_independent(ids: torch.Tensor) -> None:
    a, b, c = (hash_ids(ids, 31, seed) for seed in seeds(3))
    for x, y in [(a, b), (a, c), (b, c)]:
        assert p_value(torch.bincount(x * 31 + y, minlength=31 * 31).numpy()) > 1e-4


def test_seeds_are_distinct_and_repeatable() -> None:
    assert len(set(seeds(1000).tolist() + seeds(1000, seed=1).tolist())) == 2000
    assert torch.equal(seeds(5, seed=3), seeds(8, seed=3)[:5])


def test_collisions_are_those_of_chance() -> None:
    n, rows = 100_000, 50_000
    empty = rows - hash_ids(torch.arange(n), rows, 1234).unique().numel()
    expected = rows * (1 - 1 / rows) ** n
    assert abs(empty - expected) < 5 * expected**0.5
