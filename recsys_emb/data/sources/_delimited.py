"""Chunks of delimited text to typed columns, with every malformed record told apart by its line.

A chunk is parsed by polars at full speed. Only when something is off (a value that does not parse, a record with too
few or too many values) is it taken apart record by record.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import polars as pl

from recsys_emb.data.sources._files import Chunk, count_bytes, last_record_end, outside_quotes
from recsys_emb.data.sources.base import Rejected

SLOW_BYTES = 1 << 18
"""A chunk is halved down to this size around its malformed records."""


@dataclass(frozen=True)
class Format:
    """How records are written.

    columns:     the name and type (String, Int64 or Float64) of every column, in file order
    quote:       the character around values that hold separators; None: quotes are ordinary characters
    null_values: texts that mean a missing value, beside the empty one
    """

    columns: Mapping[str, Any]
    separator: str
    quote: str | None = None
    null_values: Sequence[str] = ()


@dataclass(frozen=True)
class Rows:
    """Good rows of one file and the rows rejected so far.

    lines: int64 [n], the line each row starts at, from 1
    texts: the texts of the rows that start at given lines
    """

    frame: pl.DataFrame
    lines: np.ndarray
    file: str
    texts: Callable[[Sequence[int]], list[str]]
    rejected: list[Rejected] = field(default_factory=list)

    def reject(self, bad: pl.Series | np.ndarray, reason: pl.Series | str, remedy: str = "") -> Rows:
        """The rows where ``bad`` (bool [n]) does not hold; the others are rejected for ``reason``, one or [n]."""
        mask = np.asarray(bad, dtype=bool)
        if not mask.any():
            return self
        at = np.flatnonzero(mask)
        reasons = [reason] * len(at) if isinstance(reason, str) else reason.gather(at).to_list()
        found = _rejections(self.file, self.lines[at].tolist(), reasons, self.texts, remedy)
        good = np.flatnonzero(~mask)
        return replace(self, frame=self.frame[good], lines=self.lines[good], rejected=[*self.rejected, *found])

    def with_column(self, column: pl.Series) -> Rows:
        """With a column more, or another one of that name."""
        return replace(self, frame=self.frame.with_columns(column))

    def with_columns(self, columns: Sequence[pl.Series]) -> Rows:
        """With columns more."""
        return replace(self, frame=self.frame.with_columns(columns)) if columns else self

    def with_constants(self, values: Mapping[str, str | None]) -> Rows:
        """With a column of texts more for each of these names, the same value in every row."""
        columns = [pl.lit(value, pl.String).alias(name) for name, value in values.items()]
        return replace(self, frame=self.frame.with_columns(columns)) if columns else self

    def select(self, renamed: Mapping[str, str], optional: Sequence[str]) -> Rows:
        """Only the columns of ``renamed``, under their new names, and those of ``optional`` that there are."""
        kept = [c for c in optional if c in self.frame.columns]
        return replace(self, frame=self.frame.select(*kept, *(pl.col(a).alias(b) for a, b in renamed.items())))


def parse(chunk: Chunk, form: Format) -> Rows:
    """The records of a chunk as typed columns; an empty value is null. Malformed records are in ``rejected``."""
    frame = _parse_fast(chunk, form)
    if frame is not None:
        return Rows(frame, _record_lines(chunk, form), chunk.file.name, partial(_texts, chunk))
    if len(chunk.text) > SLOW_BYTES:
        middle = last_record_end(chunk.text[: len(chunk.text) // 2], form.quote)
        if middle:
            return _parse_halves(chunk, middle, form)
    rows = _parse_slow(chunk, form)
    for name, dtype in form.columns.items():
        raw = rows.frame[name]
        if dtype != pl.String:
            typed = raw.str.strip_chars_start(" ").cast(dtype, strict=False)
            what = f"{name} is not {'an integer' if dtype == pl.Int64 else 'a number'}"
            rows = rows.reject(typed.is_null() & raw.is_not_null(), quoting(raw, what))
    numbers = [n for n, dtype in form.columns.items() if dtype != pl.String]
    typed_frame = rows.frame.with_columns(pl.col(n).str.strip_chars_start(" ").cast(form.columns[n]) for n in numbers)
    return replace(rows, frame=typed_frame)


def quoting(values: pl.Series, what: str) -> pl.Series:
    """Reasons String [n]: ``what`` and the value it is about."""
    texts = values.cast(pl.String).fill_null("").str.slice(0, 40)
    return pl.select(pl.format("{}: '{}'", pl.lit(what), texts)).to_series()


def _rejections(
    file: str,
    numbers: Sequence[int],
    reasons: Sequence[str],
    texts: Callable[[Sequence[int]], list[str]],
    remedy: str = "",
) -> list[Rejected]:
    return [Rejected(file, *row, remedy) for row in zip(numbers, reasons, texts(numbers))] if numbers else []


def _texts(chunk: Chunk, numbers: Sequence[int]) -> list[str]:
    lines = chunk.text.split(b"\n")
    return [lines[n - chunk.first_line].rstrip(b"\r").decode("utf-8", errors="replace") for n in numbers]


def _parse_fast(chunk: Chunk, form: Format) -> pl.DataFrame | None:
    """None when a record may be malformed: polars refuses values that do not parse and records with too many values,
    and the number of separators shows whether any has too few."""
    if chunk.text.count(b"\r") != chunk.text.count(b"\r\n"):
        return None  # polars drops carriage returns at the end of values
    try:
        frame = _read(chunk.text, form, dict(form.columns))
    except (pl.exceptions.PolarsError, OSError):  # OSError: text that begins as a compressed file does
        return None
    separators = len(form.columns) - 1
    if form.quote is not None and form.quote.encode() in chunk.text:
        outside = outside_quotes(chunk.text, form.quote)
        found = np.frombuffer(chunk.text, dtype=np.uint8)
        opening = np.flatnonzero((found == ord(form.quote)) & ~outside)
        before = found[opening[opening > 0] - 1]
        if not np.isin(before, [ord(form.separator), ord("\n"), ord(form.quote)]).all():
            return None  # polars reads "a"b"c" as abc
        records = int(np.count_nonzero((found == ord("\n")) & outside))
        total = int(np.count_nonzero((found == ord(form.separator)) & outside))
    else:
        records = chunk.lines
        total = count_bytes(chunk.text, form.separator.encode())
    return frame if len(frame) == records and total == separators * records else None


def _record_lines(chunk: Chunk, form: Format) -> np.ndarray:
    """int64 [records]: the line that each record starts at."""
    if form.quote is None or form.quote.encode() not in chunk.text:
        return chunk.first_line + np.arange(chunk.lines)
    ends = np.frombuffer(chunk.text, dtype=np.uint8) == ord("\n")
    last = outside_quotes(chunk.text, form.quote)[ends]  # of each line: whether it ends a record
    numbers = np.arange(len(last))
    return chunk.first_line + np.concatenate([[0], numbers[last][:-1] + 1])


def _read(text: bytes, form: Format, schema: dict[str, Any]) -> pl.DataFrame:
    return pl.read_csv(
        io.BytesIO(text),
        has_header=False,
        schema=schema,
        separator=form.separator,
        quote_char=form.quote,
        null_values=["", *form.null_values],
    )


def _parse_halves(chunk: Chunk, middle: int, form: Format) -> Rows:
    a, b = (parse(half, form) for half in chunk.split(middle))
    lines = np.concatenate([a.lines, b.lines])
    rejected = [*a.rejected, *b.rejected]
    return Rows(pl.concat([a.frame, b.frame]), lines, chunk.file.name, partial(_texts, chunk), rejected)


def _parse_slow(chunk: Chunk, form: Format) -> Rows:
    """Records one by one: those with the right number of values, as text; the others rejected."""
    lines = [_decoded(line) for line in chunk.text.split(b"\n")[:-1]]
    width = len(form.columns)
    starts, records, bad_starts, reasons = [], [], [], []
    for start, record in _split(lines, form, width):
        if len(record) == width:
            starts.append(chunk.first_line + start)
            records.append(record)
        else:
            bad_starts.append(chunk.first_line + start)
            reasons.append(_reason(lines[start], len(record), width))
    columns = zip(*records) if records else [()] * width
    missing = ["", *form.null_values]
    frame = pl.DataFrame({n: pl.Series(n, values, dtype=pl.String) for n, values in zip(form.columns, columns)})
    frame = frame.with_columns(pl.when(~pl.all().is_in(missing)).then(pl.all()))
    texts = partial(_texts, chunk)
    rejected = _rejections(chunk.file.name, bad_starts, reasons, texts)
    return Rows(frame, np.array(starts, dtype=np.int64), chunk.file.name, texts, rejected)


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _reason(line: str | None, found: int, expected: int) -> str:
    if line is None:
        return "not UTF-8 text"
    if not line.rstrip("\r"):
        return "blank line"
    return f"{found} columns, expected {expected}" if found else "a quote or carriage return inside a value"


def _split(lines: list[str | None], form: Format, width: int) -> Iterator[tuple[int, list[str]]]:
    """The values of each record and the position of its first line; no values for a line that cannot be read."""
    if form.quote is None:
        for at, line in enumerate(lines):
            text = (line or "").rstrip("\r")
            yield at, text.split(form.separator) if text else []
        return
    at = 0
    while at < len(lines):
        texts = (f"{line or ''}\n" for line in islice(lines, at, None))
        reader = csv.reader(texts, delimiter=form.separator, quotechar=form.quote, strict=True)
        base = at
        while at < len(lines):
            try:
                record = next(reader)
            except csv.Error:
                record = []
            end = base + reader.line_num
            if end - at != 1 and (len(record) != width or None in lines[at:end]):
                # A quote that is never closed took the lines behind it along: give up this line only.
                yield at, []
                at += 1
                break
            yield at, record
            at = end
