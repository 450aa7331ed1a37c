"""Leaving out the fields that a candidate's score does not miss, on scores that are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from recsys_emb.search.narrow import by_table, narrowed
from recsys_emb.search.space import parse_space

TABLES = {"noise": 100, "weak": 1_000, "strong": 10_000}
CHOICES = {"choices": [8, 0, 1, 2, 4]}


def score(widths: Mapping[str, int]) -> float:
    """``strong`` gains up to 4 columns and ``weak`` by its first; ``noise`` only harms."""
    return 0.7 + 0.01 * min(widths["strong"], 4) + 0.0005 * min(widths["weak"], 1) - 0.00002 * widths["noise"]


def widths_of(form: dict[str, Any], loss: float, start: int = 8) -> dict[str, int]:
    space = parse_space({"embedding.options.widths.*": form}, TABLES, "space")
    return by_table(space, narrowed(space, {p.name: start for p in space.params}, score, loss))


@pytest.mark.parametrize("form", [CHOICES, {"int": [0, 8]}])
def test_fields_of_no_use_are_left_out_and_others_stay(form: dict[str, Any]) -> None:
    assert widths_of(form, loss=1e-4) == {"noise": 0, "weak": 1, "strong": 8}
    assert widths_of(form, loss=1e-3) == {"noise": 0, "weak": 0, "strong": 8}
    assert widths_of(form, loss=1.0) == dict.fromkeys(TABLES, 0)


def test_nothing_narrows_below_the_space() -> None:
    assert widths_of({"choices": [2, 4]}, loss=1.0, start=4) == dict.fromkeys(TABLES, 4)
    assert widths_of({"choices": [1, 2, 4]}, loss=1.0, start=4) == dict.fromkeys(TABLES, 1)
    assert widths_of(CHOICES, loss=1e-4, start=0) == dict.fromkeys(TABLES, 0)


def test_tables_that_share_a_width_are_narrowed_together() -> None:
    assert widths_of({**CHOICES, "groups": 2}, loss=1e-4) == {"noise": 1, "weak": 1, "strong": 8}
