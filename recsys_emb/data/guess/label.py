"""Which column says what was clicked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recsys_emb.data.guess import words
from recsys_emb.data.guess.sample import FEW, Column
from recsys_emb.data.sources._label import POSITIVE, as_yaml
from recsys_emb.errors import UserError

_PAIRS = ({"0", "1"}, {"true", "false"}, {"y", "n"}, {"yes", "no"}, {"t", "f"}, {"-1", "1"})


@dataclass(frozen=True)
class Label:
    """The label of n rows.

    column:  its name
    options: ``label``, and ``label_threshold`` where that is what tells
    known:   bool [n], the rows that have one
    clicks:  bool [n]
    why:     for a comment
    """

    column: str
    options: dict[str, Any]
    known: np.ndarray
    clicks: np.ndarray
    why: str


def find_label(file: Path, columns: Sequence[Column]) -> Label:
    """The column whose two values, and name, look most like a label; else a rating.

    Raises:
        UserError: there is none.
    """
    found = [(_score(c, c in (columns[0], columns[-1])), c) for c in columns if _pair(c) is not None]
    best, column = max(found, key=lambda pair: pair[0], default=(0.0, None))
    if column is None or not words.says(column.name, words.LABEL):
        for rating in columns:
            if words.says(rating.name, words.RATING) and rating.numbers is not None and 2 < len(rating.counts) <= 11:
                return _rating(rating)
    if column is None:
        have = ", ".join(repr(c.name) for c in columns)
        raise UserError(f"{file}: no column of two values that could be the label; it has {have}")
    others = [c.name for score, c in found if c is not column and score == best]
    return _label(column, others)


def _pair(column: Column) -> tuple[str, str] | None:
    """The two values of a column that has two, all but a few rows."""
    if column.values.dtype.is_nested() or column.missing > FEW or len(column.counts) < 2:
        return None
    (one, often), (other, seldom), *_ = column.counts.items()
    return (one, other) if often + seldom >= (1 - FEW) * len(column.present) else None


def _score(column: Column, at_an_end: bool) -> float:
    pair = _pair(column)
    assert pair is not None
    known = {value.lower() for value in pair} in _PAIRS
    return 4 * words.says(column.name, words.LABEL) + 2 * known + 1 * at_an_end


def _label(column: Column, others: Sequence[str]) -> Label:
    pair = _pair(column)
    assert pair is not None
    clicked = [value for value in pair if value.lower() in POSITIVE]
    positive = clicked[0] if len(clicked) == 1 else pair[1]  # the rarer one
    if column.numbers is not None:
        positive = max(pair, key=float)
    negative = next(value for value in pair if value != positive)
    options: dict[str, Any] = {"label": column.name}
    if {positive, negative} not in ({"0", "1"}, {"true", "false"}):
        values = {"positive": as_yaml(positive), "negative": as_yaml(negative)}
        options = {"label": {"column": column.name, **values}}
    present = column.values.is_not_null().to_numpy()
    known, clicks = np.zeros(len(present), bool), np.zeros(len(present), bool)
    known[present], clicks[present] = column.texts.is_in(list(pair)), column.texts == positive
    why = f"two values, {positive} in {clicks[known].mean():.1%} of the rows"
    if not clicked and column.numbers is None:
        why += ", the rarer one: is it the click?"
    if not words.says(column.name, words.LABEL):
        why += "; no name says what was clicked, is it this"
        why += f", or {' or '.join(others)}?" if others else "?"
    return Label(column.name, options, known, clicks, why)


def _rating(column: Column) -> Label:
    numbers = column.values.cast(pl.String).cast(pl.Float64, strict=False)
    low, high = np.nanquantile(numbers.to_numpy(), [0, 1]).tolist()
    middle = (low + high) / 2
    known, clicks = numbers.is_not_null().to_numpy(), (numbers > middle).fill_null(False).to_numpy()
    why = f"{low:g} to {high:g}, above {middle:g} in {clicks[known].mean():.1%} of the rows"
    threshold = int(middle) if middle.is_integer() else middle
    return Label(column.name, {"label": column.name, "label_threshold": threshold}, known, clicks, why)
