"""Lists written as text: values between separators, or as Python, JSON and numpy print them, ``['a', 'b']``."""

from __future__ import annotations

import ast
import json
import re

import polars as pl

_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
_BARE = r"""[^\s,'"\[\](){}]+"""
_NUMBER = r"[+-]?[0-9][0-9_.eE+-]*"
_ITEM = rf"(?:{_QUOTED}|{_BARE})"
_BRACKETED = r"""(?s)^(?:\[.*\]|\(\s*['"].*\)|\{\s*['"].*\})$"""
_COMMAS = rf"(?s)^\s*(?:{_ITEM}(?:\s*,\s*{_ITEM})*\s*,?\s*)?$"
_SPACES = rf"(?s)^\s*(?:{_QUOTED}|{_NUMBER})(?:\s+(?:{_QUOTED}|{_NUMBER}))*\s*$"
_ANY_SPACES = rf"(?s)^\s*{_ITEM}(?:\s+{_ITEM})*\s*$"
_PAIR = r"""(?s)^(?:"(.*)"|'(.*)')$"""
_UNCLOSED = r"""^[\[({]\s*['"]"""
_HALF_QUOTED = r"""(?s)^(?:"(?:.*[^"])?|".*".*"|'.*'.*')$"""
"""Items that a separator inside of quotes cut through, or a separator that is another one."""
_NO_VALUES = ("None", "nan", "NaN", "null", "NULL", "<NA>")
"""How missing values of a list are printed, without quotes."""


def in_brackets(texts: pl.Series) -> pl.Series:
    """bool [n]: which texts are a list in brackets, well written or not."""
    return texts.str.strip_chars().str.contains(_BRACKETED).fill_null(False)


def split_texts(texts: pl.Series, separator: str | None, *, keep_gaps: bool = False) -> tuple[pl.Series, pl.Series]:
    """Lists of texts, without the space and the pair of quotes around an item.

    Args:
        texts: String [n].
        separator: between the values of a text without brackets, which is no list where this is None. In brackets
            values stand between commas, or between the separator; between spaces where all are numbers or in quotes.
        keep_gaps: an empty value is null, but for the one after a separator at the end; else it is none at all.

    Returns:
        List(String) [n], null where there is no text; bool [n], which texts are no list, and null there: an item that
        is not closed, brackets inside brackets, or spaces inside an item that has no quotes.
    """
    stripped = texts.str.strip_chars()
    texts = texts.set((stripped == "").fill_null(False), None)
    bracketed = in_brackets(stripped)
    if not bracketed.any():
        return _separated(texts, separator, keep_gaps)
    inside = stripped.set(~bracketed, None).str.slice(1).str.head(-1)
    by_separator = ~bracketed
    if separator is not None and separator.strip() not in ("", ","):
        plain = ~inside.str.contains("[\"']").fill_null(True)
        by_separator |= plain & inside.str.contains(separator, literal=True).fill_null(False)
    outside = pl.select(pl.coalesce(inside.set(~by_separator, None), texts.set(bracketed, None))).to_series()
    lists, wrong = _separated(outside, separator, keep_gaps)
    printed, badly = _printed(
        inside.set(by_separator, None), separator is not None and not separator.strip(), keep_gaps
    )
    lists = pl.select(pl.when(by_separator).then(lists).otherwise(printed).alias(texts.name)).to_series()
    return lists, wrong | badly


def _separated(texts: pl.Series, separator: str | None, keep_gaps: bool) -> tuple[pl.Series, pl.Series]:
    """Lists from texts without brackets, and which texts are none."""
    if separator is None:
        return pl.Series(texts.name, [None] * len(texts), pl.List(pl.String)), texts.is_not_null()
    items, item, mark = texts.str.split(separator), pl.element().str.strip_chars(), re.escape(separator)
    wrong = texts.str.strip_chars().str.contains(_UNCLOSED).fill_null(False)
    if texts.str.contains_any(['"', "'"]).any():
        wrong |= items.list.eval(item.str.contains(_HALF_QUOTED).any()).list.first().fill_null(False)
        item = item.str.replace(_PAIR, "${1}${2}")
    elif not texts.str.contains(rf"^(?:\s|{mark})|\s{mark}|{mark}(?:\s|{mark})|(?:\s|{mark})$").any():
        return items.set(wrong, None), wrong  # no space to take away, no gap
    return _without_gaps(items.set(wrong, None), item, keep_gaps), wrong


def _printed(inside: pl.Series, spaced: bool, keep_gaps: bool) -> tuple[pl.Series, pl.Series]:
    """Lists from what stands in brackets, and which texts are none; ``spaced``: items stand between spaces."""
    good = inside.str.contains(_COMMAS) | inside.str.contains(_ANY_SPACES if spaced else _SPACES)
    items = inside.set(~good.fill_null(False), None).str.extract_all(_ITEM)
    token = pl.element()
    missing = token.is_in(_NO_VALUES)
    plain = token.str.replace(_PAIR, "${1}${2}")
    wrong = ~good.fill_null(True)
    if inside.str.contains("\\", literal=True).any():
        escaped = items.explode().unique().drop_nulls()
        known = {text: _unescape(text) for text in escaped.filter(escaped.str.contains("\\", literal=True)).to_list()}
        broken = [text for text, value in known.items() if value is None]
        if broken:
            wrong |= items.list.eval(token.is_in(broken).any()).list.first().fill_null(False)
        plain = token.replace_strict(known, default=plain, return_dtype=pl.String) if known else plain
    value = pl.when(~missing).then(plain.str.strip_chars())
    if keep_gaps:
        return items.list.eval(value.replace("", None)), wrong
    return items.list.eval(value.filter(missing | (plain.str.strip_chars() != ""))), wrong


def _without_gaps(items: pl.Series, item: pl.Expr, keep_gaps: bool) -> pl.Series:
    if not keep_gaps:
        return items.list.eval(item.filter(item != ""))
    kept = items.list.eval(pl.when(item != "").then(item))
    ends = kept.list.last().is_null() & (kept.list.len() > 0)  # a separator at the end
    lengths = kept.list.len().cast(pl.Int64) - ends.cast(pl.Int64)
    return pl.select(pl.lit(kept).list.head(pl.lit(lengths))).to_series()


def _unescape(token: str) -> str | None:
    """What a token in quotes with backslashes says; None when it says nothing."""
    try:
        value = json.loads(token) if token.startswith('"') else ast.literal_eval(token)
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) else None
