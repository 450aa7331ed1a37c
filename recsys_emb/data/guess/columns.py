"""What the values of one column look like: a list, a time, an id, a quantity."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from recsys_emb.data.guess import words
from recsys_emb.data.guess.sample import FEW, Column, share
from recsys_emb.data.lists import flatten
from recsys_emb.data.sources._list_texts import in_brackets, split_texts
from recsys_emb.data.sources._times import fitting_units, read_times
from recsys_emb.data.values import distinct_codes

_LIST_SEPARATORS = ("|", ";", "::", "^", "~", ",", " ")
_DECIMAL_COMMA = r"^-?[0-9]+(?:,[0-9]+)?$"
_TIME_FORMATS = (
    *("%m/%d/%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %H:%M", "%d/%m/%Y %H:%M", "%m/%d/%Y", "%d/%m/%Y"),
    *("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%d-%m-%Y %H:%M:%S", "%d-%m-%Y"),
    *("%b %d %Y %H:%M:%S", "%d %b %Y %H:%M:%S", "%d %b %Y", "%d/%b/%Y:%H:%M:%S %z", "%Y%m%d%H%M%S", "%Y%m%d %H:%M:%S"),
)


@dataclass(frozen=True)
class ListFacts:
    """Lists of a column.

    separator: between values of texts; None for lists in brackets and those of Parquet
    values:    String or Int64, of all rows one after another
    lengths:   int64 [n], 0 where a list is missing
    how:       how they are written, in words
    """

    separator: str | None
    values: pl.Series
    lengths: np.ndarray
    how: str


@dataclass(frozen=True)
class TimeFacts:
    """Times of a column: how texts are written where ``data prepare`` must be told, the first and the last one."""

    written: str | None
    first: str
    last: str
    how: str


def find_list(column: Column) -> ListFacts | None:
    """The lists that a column holds, if it does."""
    present = column.present
    if isinstance(present.dtype, (pl.List, pl.Array)):
        return _facts(column.values, None, "lists")
    if present.dtype != pl.String or column.numbers is not None:
        return None
    if in_brackets(present).sum() >= (1 - FEW) * len(present):
        lists, wrong = split_texts(column.values, None)
        return None if wrong.sum() > FEW * len(present) else _facts(lists, None, "printed lists")
    if present.str.contains(_DECIMAL_COMMA).all():
        return None
    for separator in _LIST_SEPARATORS:
        facts = _separated(column, separator)
        if facts is not None:
            return facts
    return None


def _separated(column: Column, separator: str) -> ListFacts | None:
    """Lists whose values recur; between commas and spaces, only of ids and in different numbers."""
    present = column.present
    several = present.str.contains(separator, literal=True)
    if several.sum() < 0.05 * len(present):
        return None
    lists, wrong = split_texts(column.values, separator)
    if wrong.sum() > FEW * len(present):
        return None
    named = f"{separator!r} between the values" if separator.strip() else "spaces between the values"
    facts = _facts(lists, separator, named)
    inner = facts.values.drop_nulls()
    distinct = inner.str.replace(r":[0-9.eE+-]+$", "").n_unique()  # of id:weight the ids
    if distinct > 0.5 * len(inner):
        return None
    if separator in _LIST_SEPARATORS[:-2]:  # which texts seldom hold
        return facts
    varies = facts.lengths.min(initial=99) != facts.lengths.max(initial=0)
    digits, spaces = (share(inner.str.contains(mark)) for mark in ("[0-9_]", r"\s"))
    of_ids = digits >= 0.9 if separator == " " else spaces <= FEW  # or it is a sentence
    return facts if varies and of_ids and distinct < len(column.counts) else None


def _facts(lists: pl.Series, separator: str | None, how: str) -> ListFacts:
    values, lengths = flatten(lists)
    if values.dtype == pl.String:
        distinct, codes = distinct_codes(values)
        values = pl.Series(values.name, distinct.take(codes), dtype=pl.String)
    return ListFacts(separator, values, lengths, how)


def find_time(column: Column) -> TimeFacts | None:
    """The times that a column holds, if it does."""
    present = column.present
    if not len(present) or present.dtype.is_nested() or present.dtype == pl.Boolean:
        return None
    if present.dtype.is_temporal():
        return _span(present, present, None, "times") if present.dtype != pl.Time else None
    if column.numbers is not None:
        return _numeric_time(column)
    for written in (None, *_TIME_FORMATS):
        times, kinds = read_times(present.cast(pl.String), written)
        if (kinds >= 2).sum() >= (1 - FEW) * len(present):  # times without or with a zone
            how = "ISO times" if written is None else f"times as {written}"
            facts = _span(present, times, written, how)
            other = (written or "").replace("%m/%d", "%d/%m") if (written or "").startswith("%m/%d") else None
            if other is not None and (read_times(present.cast(pl.String), other)[1] >= 2).all():
                return replace(facts, how=f"{facts.how}; {other} fits as well")
            return facts
    return None


def _numeric_time(column: Column) -> TimeFacts | None:
    """Seconds since 1970 and the like, where the name says time too or the rows are in its order."""
    assert column.numbers is not None
    numbers = column.numbers.drop_nulls().to_numpy()
    ordered = len(numbers) > 2 and bool((np.diff(numbers) >= 0).mean() > 0.99)
    if not words.says(column.name, words.TIME) and not ordered:
        return None
    for unit, fits in fitting_units(numbers):
        if fits.mean() >= 1 - FEW and len(np.unique(numbers)) > 1:
            how = unit if unit.isupper() else f"{unit} since 1970"
            return _span(column.numbers, column.numbers, None, how)
    return None


def _span(values: pl.Series, times: pl.Series, written: str | None, how: str) -> TimeFacts:
    first, last = times.arg_min(), times.arg_max()
    shown = [str(values[at])[:19] if at is not None else "" for at in (first, last)]
    if values.dtype.is_float():
        shown = [text.removesuffix(".0") for text in shown]
    return TimeFacts(written, shown[0], shown[1], how)


def is_id(column: Column) -> tuple[bool, str]:
    """Whether numbers name something rather than measure it, and why."""
    assert column.numbers is not None
    distinct = len(column.counts)
    if not column.integers:
        padded = column.texts.str.contains(r"^0[0-9]").any()
        return (True, "digits with zeros in front") if padded else (False, "numbers")
    if words.says(column.name, words.ID):
        return True, "integers, by its name"
    if words.says(column.name, words.NUMBER):
        return False, "integers that count or measure, by its name"
    if distinct <= 50:
        return True, "integers of few values"
    low, typical, high = np.nanquantile(column.numbers.to_numpy(), [0, 0.5, 1]).tolist()
    if typical > 10_000 and distinct < 0.5 * (high - low + 1):
        return True, "large integers with gaps"
    return False, "integers"


def is_skewed(numbers: pl.Series) -> bool:
    """Whether the largest of numbers that are not negative lie far from most."""
    least, median, high = np.nanquantile(numbers.to_numpy(), [0, 0.5, 0.99]).tolist()
    return bool(least >= 0 and high > 10 * max(median, 1))
