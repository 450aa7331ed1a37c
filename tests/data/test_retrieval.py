"""The retrieval structure against a dictionary: what was stored is found, at every size and width."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_emb.data.retrieval import LARGEST_SEGMENT, WIDEST, Retrieval, packed_bytes, shape


def keys_and_numbers(n: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    keys = random.permutation(n).astype(np.uint64) * np.uint64(3) + np.uint64(7)  # far from random
    return keys, random.integers(0, 1 << width, n, dtype=np.uint64)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 5, 17, 64, 300, 5_000, 60_000])
@pytest.mark.parametrize("width", [1, 7, 13])
def test_every_key_has_its_number(n: int, width: int) -> None:
    keys, numbers = keys_and_numbers(n, width, n)
    made = Retrieval.build(keys, numbers, width)
    assert len(made.packed) == packed_bytes(made.segment, made.starts, width)
    assert (made.get(keys) == numbers).all()
    backwards = made.get(keys[::-1])
    assert (backwards == numbers[::-1]).all()


@pytest.mark.parametrize("width", range(WIDEST + 1))
def test_every_width(width: int) -> None:
    keys, numbers = keys_and_numbers(200, width)
    assert (Retrieval.build(keys, numbers, width).get(keys) == numbers).all()


def test_a_million_keys_take_1_08_places_each() -> None:
    assert packed_bytes(*shape(1_000_000), 8) / 1_000_000 == pytest.approx(1.077, abs=0.002)
    assert packed_bytes(*shape(33_000_000), 8) / 33_000_000 < 1.08
    assert shape(10**9)[0] <= LARGEST_SEGMENT


def test_what_was_not_stored_gets_numbers_without_a_pattern() -> None:
    """Each of 16 numbers as often as the others: within five standard deviations of a binomial count."""
    keys, numbers = keys_and_numbers(20_000, 4)
    others = np.arange(1, 100_001, dtype=np.uint64) << np.uint64(40)
    counts = np.bincount(Retrieval.build(keys, numbers, 4).get(others).astype(np.int64), minlength=16)
    expected = len(others) / 16
    assert abs(counts - expected).max() < 5 * np.sqrt(expected) * 1.2  # places that no key uses are 0, so a bit more


def test_the_order_of_keys_means_nothing() -> None:
    keys, numbers = keys_and_numbers(1_000, 9)
    one, two = (Retrieval.build(keys[order], numbers[order], 9) for order in (slice(None), slice(None, None, -1)))
    assert (one.get(keys) == two.get(keys)).all()


def test_equal_keys_cannot_be_stored() -> None:
    keys, numbers = keys_and_numbers(50, 5)
    keys[3] = keys[40]
    with pytest.raises(ValueError, match="two keys are the same"):
        Retrieval.build(keys, numbers, 5)


@pytest.mark.parametrize(
    "sizes", [(-1, 4, 1, 8), (0, 3, 1, 8), (0, 4, 0, 8), (0, 4, 1, 57), (0, 4, 1, 7), (0, 4, 2, 8), (0, 1 << 20, 1, 8)]
)
def test_sizes_that_cannot_be(sizes: tuple[int, int, int, int]) -> None:
    packed = np.zeros(16 + 8, np.uint8)  # of 4 segments of 4 places of 8 bits
    assert (Retrieval(0, 4, 1, 8, packed).get(np.arange(3, dtype=np.uint64)) == 0).all()
    with pytest.raises(ValueError, match="impossible sizes"):
        Retrieval(*sizes, packed)
