"""Sizes as people read them."""

import pytest

from recsys_emb.errors import UserError
from recsys_emb.sizes import budget_bytes, human_bytes


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (2_162_560_000, "2.2 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_decimal_units(n, text):
    assert human_bytes(n) == text


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        *((0.1, 100), ("0.1", 100), (1, 1000), (2000, 2000), ("20MB", 20_000_000), ("1.5 KiB", 1536), (None, None)),
        *((".5", 500), ("1e-1", 100), ("1e6", 10**6), ("2.5e1MB", 25_000_000), ("1E+3", 1000)),
    ],
)
def test_budget_in_bytes(budget: float | str | None, expected: int | None) -> None:
    assert budget_bytes(budget, 1000) == expected


@pytest.mark.parametrize(
    "budget", [0, -1, 1.5, "1.5", True, "20 parsecs", "", ".", "e3", "1e", "-1", float("nan"), float("inf")]
)
def test_a_bad_budget_says_what_is_allowed(budget: float | str) -> None:
    with pytest.raises(UserError, match=r"budget: .*allowed: a ratio above 0"):
        budget_bytes(budget, 1000)
