"""Sizes as people read them."""

from typing import Any

import pytest

from recsys_emb.errors import UserError
from recsys_emb.sizes import TotalBudget, budget_bytes, human_bytes, in_mb, parse_budget, parse_count, written_budget


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


@pytest.mark.parametrize("given", [{"total": "20MB"}, {"total": 20_000_000}, "total=20MB", "total=2e7"])
def test_a_budget_of_all_that_is_served(given: Any) -> None:
    budget = parse_budget(given)
    assert isinstance(budget, TotalBudget)
    assert budget.bytes == 20_000_000
    assert parse_budget(written_budget(budget)) == budget == parse_budget(budget)
    with pytest.raises(UserError, match="budget: a total needs vocabularies and a network, which are not known here"):
        budget_bytes(budget, 1000)


@pytest.mark.parametrize("given", [0.1, "20MB", 2000, None])
def test_other_budgets_stay_as_they_are(given: Any) -> None:
    assert parse_budget(given) == given == written_budget(given)


@pytest.mark.parametrize(
    "given", [{}, {"totl": 1}, {"total": 0}, {"total": 0.5}, {"total": True}, {"total": "x"}, {"total": []}, "total="]
)
def test_a_bad_total_says_what_is_allowed(given: Any) -> None:
    with pytest.raises(UserError, match=r"budget: .*allowed: "):
        parse_budget(given)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("5000", 5000), ("5k", 5000), ("200M", 200_000_000), ("2e8", 200_000_000), ("200_000_000", 200_000_000)),
        *(("1.5G", 1_500_000_000), (" 3 B ", 3_000_000_000), ("0", 0), ("9007199254740993", 9007199254740993)),
        *((text, None) for text in ("", "k", "-5", "5.5", "2e-3", "1e999", "5kk", "lots", "1e2.5")),
    ],
)
def test_counts(text: str, expected: int | None) -> None:
    assert parse_count(text) == expected


@pytest.mark.parametrize(("n", "text"), [(2_162_560_000, "2,162.560"), (63_961, "0.064"), (300, "0.000300")])
def test_megabytes(n: int, text: str) -> None:
    assert in_mb(n) == text
