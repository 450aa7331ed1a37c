"""Tables of the MovieLens sources: rows with their line, their text and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from recsys_emb.data.column_types import check_type
from recsys_emb.data.sources._files import read_chunks
from recsys_emb.data.sources.base import Note, Rejected
from recsys_emb.data.values import canonical
from recsys_emb.errors import UserError

RATING = ("user_id", "item_id", "rating")


def read_dat(path: Path, columns: Sequence[str], separator: str = "::") -> pl.DataFrame:
    """The lines of a latin-1 file of values and separators: ``columns`` as String, ``line``, ``text`` and ``reason``.

    ``reason`` says what is wrong with a line and is null for a good one; blank lines are left out.
    """
    lines = b"".join(c.text for c in read_chunks(path)).decode("latin-1").split("\n")
    frame = pl.DataFrame({"text": pl.Series(lines, dtype=pl.String).str.strip_chars_end("\r")})
    frame = frame.with_row_index("line", offset=1).filter(pl.col("text") != "")
    parts = pl.col("text").str.split(separator)
    values = [parts.list.get(i, null_on_oob=True).alias(c) for i, c in enumerate(columns)]
    found = parts.list.len()
    wrong = pl.format("{} values separated by '{}', expected {}", found, pl.lit(separator), pl.lit(len(columns)))
    return frame.with_columns(*values, reason=pl.when(found != len(columns)).then(wrong))


def named(table: pl.DataFrame, columns: Sequence[str], path: Path) -> pl.DataFrame:
    """``columns`` of a table with named columns, in the form that ``read_dat`` gives."""
    missing = [c for c in columns if c not in table.columns]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; it has {', '.join(table.columns)}")
    for column in columns:
        where = f"{path}: column {column!r}"
        if column == "rating":
            check_type("label", table[column].dtype, where)
        else:
            table = table.with_columns(canonical(table[column], where))
    text = pl.concat_str([pl.col(c).cast(pl.String) for c in columns], separator=",", ignore_nulls=True)
    rows = table.select(*columns, text=text, reason=pl.lit(None, pl.String))
    rows = rows.with_row_index("line", offset=2)  # the names of columns are line 1
    return rows


def reason(wrong: pl.Expr, column: str, what: str) -> pl.Expr:
    """``reason`` where a row was good so far and ``wrong`` holds; ``column`` is quoted in it."""
    value = pl.col(column).cast(pl.String).fill_null("")
    return pl.coalesce("reason", pl.when(wrong).then(pl.format("{} '{}' is {}", pl.lit(column), value, pl.lit(what))))


def typed(rows: pl.DataFrame, integers: Sequence[str]) -> pl.DataFrame:
    """Those of the columns that there are as Int64, with a ``reason`` where a value is no integer."""
    for column in (c for c in integers if c in rows.columns):
        number = pl.col(column).cast(pl.Int64, strict=False)
        rows = rows.with_columns(number.alias(column), reason=reason(number.is_null(), column, "not an integer"))
    return rows


def check_unique(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    """A second line of one user or movie gets a ``reason``: joining it would double ratings."""
    again = pl.col("reason").is_null() & ~pl.struct(key, pl.col("reason").is_null()).is_first_distinct()
    return rows.with_columns(reason=reason(again, key, "there already"))


def drop_bad(rows: pl.DataFrame, path: Path, rejected: list[Rejected]) -> pl.DataFrame:
    """The good rows without the bookkeeping columns; the others are added to ``rejected``."""
    bad = rows.filter(pl.col("reason").is_not_null())
    rejected += [Rejected(path.name, *row) for row in bad.select("line", "reason", "text").iter_rows()]
    return rows.filter(pl.col("reason").is_null()).drop("line", "reason", "text")


def rated(rows: pl.DataFrame) -> pl.DataFrame:
    """``rating`` as Float32, with a ``reason`` where it is not from 1 to 5."""
    rating = pl.col("rating").cast(pl.Float32, strict=False)
    wrong = ~rating.is_between(1, 5).fill_null(False)
    return rows.with_columns(rating=rating, reason=reason(wrong, "rating", "not between 1 and 5"))


def missing_note(ratings: pl.DataFrame, others: pl.DataFrame, key: str, file: Path) -> list[Note]:
    """A note of the ratings whose user or item another file does not have, where there are any."""
    missing = ~ratings[key].is_in(others[key].implode())
    if not missing.any():
        return []
    what = f"ratings have no {', '.join(c for c in others.columns if c != key)}: no {key} like theirs in {file}"
    return [Note(int(missing.sum()), len(ratings), what)]
