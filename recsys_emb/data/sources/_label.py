"""The label column of ``table``: which of its values are clicks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import polars as pl
import yaml

from recsys_emb.data.dense import read_numbers
from recsys_emb.data.sources._delimited import Rows, quoting
from recsys_emb.data.sources._table_options import LabelSpec, Value

POSITIVE = ("1", "y", "yes", "t", "true", "click", "clicked", "positive", "pos", "p", "buy", "bought", "purchase")
"""How a click is often written, in small letters."""
_YAML = {True: ("true", "yes", "on"), False: ("false", "no", "off")}
"""Texts that YAML reads as true and false."""


def read_label(rows: Rows, spec: LabelSpec, threshold: float | None, name: str) -> Rows:
    """Adds the labels, UInt8, as column ``name``; rejects rows without one."""
    raw = rows.frame[spec.column]
    if threshold is not None:
        numbers, wrong = read_numbers(raw)
        labelled = rows.with_column((numbers > threshold).cast(pl.UInt8).alias(name))
        labelled = labelled.reject(wrong, quoting(raw, "label is not a number"))
        return labelled.reject(labelled.frame[name].is_null(), "label is missing")
    texts = raw.cast(pl.String).str.strip_chars()
    click = _matches(texts, spec.positive or (1, True))
    if spec.positive and not spec.negative:
        other = texts.is_not_null() & (texts != "")
    else:
        other = _matches(texts, spec.negative or (0, False))
    wrong = ~(click | other)
    rows = rows.with_column(click.cast(pl.UInt8).alias(name))
    if not wrong.any():
        return rows
    if not spec.positive:
        return rows.reject(wrong, quoting(texts, "label is not 0 or 1"), remedy(texts, spec.column))
    return rows.reject(wrong, quoting(texts, "label is neither positive nor negative"))


def remedy(texts: pl.Series, column: str) -> str:
    """What to write in the schema so that these labels are read."""
    values = texts.drop_nulls().value_counts(sort=True)[texts.name].to_list()
    numbers = pl.Series(values, dtype=pl.String).cast(pl.Float64, strict=False)
    if len(values) > 2 and numbers.null_count() < len(values) / 2:
        return "`label_threshold: NUMBER` makes a click of every label above it"
    positive = next((v for v in values if v.lower() in POSITIVE), "VALUE" if len(values) != 2 else values[-1])
    flow = yaml.safe_dump({"column": column, "positive": as_yaml(positive)}, default_flow_style=True, sort_keys=False)
    return f"`label: {flow.strip()}` says which value is a click"


def as_yaml(text: str) -> Value:
    """The number that a text is, else the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _matches(texts: pl.Series, values: Sequence[Value]) -> pl.Series:
    """bool [n]: which texts are one of the values; numbers by what they are worth."""
    found = texts.is_in([v for v in values if isinstance(v, str)]).fill_null(False)
    numbers = [n for v in values if not isinstance(v, bool) and (n := _number(v)) is not None]
    if numbers:
        found |= texts.cast(pl.Float64, strict=False).is_in(numbers).fill_null(False)
    truths = [text for v in values if isinstance(v, bool) for text in _YAML[v]]
    if truths:
        found |= texts.str.to_lowercase().is_in(truths).fill_null(False)
    return found


def _number(value: int | float | str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None
