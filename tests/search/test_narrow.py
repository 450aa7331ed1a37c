"""Leaving out the fields that a candidate's score does not miss, on predictions whose worth is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from recsys_emb.search.narrow import CHANCE, by_table, narrowed
from recsys_emb.search.space import parse_space
from recsys_emb.training.metrics import Predictions, auc_change
from recsys_emb.training.task import ClickThrough

TABLES = {"noise": 100, "weak": 1_000, "strong": 10_000}
CHOICES = {"choices": [8, 0, 1, 2, 4]}
TASK = ClickThrough()
MANY, FEW = 20_000, 400


def predict(widths: Mapping[str, int], rows: int = MANY) -> Predictions:
    """``strong`` gains up to 4 columns and ``weak`` by its first; ``noise`` is unrelated to the labels."""
    draw = torch.Generator().manual_seed(0)
    values = dict(zip(TABLES, torch.randn(3, rows, generator=draw)))
    true = values["strong"] + 0.2 * values["weak"]
    labels = (torch.rand(rows, generator=draw) < true.sigmoid()).float()
    used = {"noise": 0.02 * min(widths["noise"], 1), "weak": 0.2 * min(widths["weak"], 1)}
    used["strong"] = min(widths["strong"], 4) / 4
    out = Predictions()
    out.append(sum((share * values[name] for name, share in used.items()), torch.zeros(rows)), labels)
    return out


def widths_of(form: dict[str, Any], most: float, start: int = 8, rows: int = MANY) -> dict[str, int]:
    space = parse_space({"embedding.options.widths.*": form}, TABLES, "space")
    found = narrowed(space, {p.name: start for p in space.params}, lambda w: predict(w, rows), TASK, most)
    return by_table(space, found)


@pytest.mark.parametrize("form", [CHOICES, {"int": [0, 8]}])
def test_fields_of_no_use_are_left_out_and_others_stay(form: dict[str, Any]) -> None:
    assert widths_of(form, most=1.0) == {"noise": 0, "weak": 8, "strong": 8}


def test_of_few_rows_a_field_is_not_left_out_for_all_that_they_cannot_tell() -> None:
    assert widths_of(CHOICES, most=1.0, rows=FEW)["weak"] == 0
    assert widths_of(CHOICES, most=1e-4, rows=FEW)["weak"] == 8


def test_nothing_narrows_below_the_space() -> None:
    assert widths_of({"choices": [2, 4]}, most=1.0, start=4) == dict.fromkeys(TABLES, 4)
    assert widths_of({"choices": [1, 2, 4]}, most=1.0, start=4) == {"noise": 1, "weak": 1, "strong": 4}
    assert widths_of(CHOICES, most=1.0, start=0) == dict.fromkeys(TABLES, 0)


def test_tables_that_share_a_width_are_narrowed_together() -> None:
    assert widths_of({**CHOICES, "groups": 2}, most=1.0) == dict.fromkeys(TABLES, 8)
    assert widths_of({"choices": [8, 1], "groups": 2}, most=1.0) == {"noise": 1, "weak": 1, "strong": 8}


def test_the_least_missed_goes_first() -> None:
    """Of two tables that tell nearly the same the one that tells more stays, and without either all is lost."""
    draw = torch.Generator().manual_seed(2)
    value, noise, more = torch.randn(3, MANY, generator=draw)
    labels = (torch.rand(MANY, generator=draw) < value.sigmoid()).float()

    def of_two(widths: Mapping[str, int]) -> Predictions:
        told = value + noise if widths["better"] else value + noise + 0.03 * more
        out = Predictions()
        out.append(told if max(widths.values()) else torch.zeros(MANY), labels)
        return out

    tables = {"better": 10, "worse": 10}
    space = parse_space({"embedding.options.widths.*": CHOICES}, tables, "space")
    found = by_table(space, narrowed(space, {p.name: 8 for p in space.params}, of_two, TASK, most=1.0))
    assert found == {"better": 8, "worse": 0}
    change, error = auc_change(of_two({"better": 8, "worse": 8}), of_two({"better": 0, "worse": 8}))
    assert 0 < -change < CHANCE * error  # the other way round would have passed too


def test_many_fields_of_little_use_do_not_go_one_by_one() -> None:
    """Of 26 fields that add the same little beside one that tells much, no more go than all together may cost."""
    rows, most = 40_000, 5e-4
    draw = torch.Generator().manual_seed(0)
    values, strong = 0.08 * torch.randn(26, rows, generator=draw), 3 * torch.randn(rows, generator=draw)
    labels = (torch.rand(rows, generator=draw) < (values.sum(0) + strong).sigmoid()).float()

    def of_used(widths: Mapping[str, int]) -> Predictions:
        out = Predictions()
        out.append(values[[w > 0 for w in widths.values()]].sum(0) + strong, labels)
        return out

    tables = {f"t{i}": 10 for i in range(26)}
    space = parse_space({"embedding.options.widths.*": CHOICES}, tables, "space")
    start = dict.fromkeys(tables, 8)
    for limit in (most, 1.0):  # each field alone costs less than either
        found = by_table(space, narrowed(space, {p.name: 8 for p in space.params}, of_used, TASK, limit))
        change, error = auc_change(of_used(start), of_used(found))
        assert -change <= min(limit, CHANCE * error)
