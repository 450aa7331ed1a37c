"""Any CSV, TSV or Parquet file, with a schema that says which column is what."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_emb.data.sources._delimited import Format, Rows, parse, quoting
from recsys_emb.data.sources._files import find_files, read_chunks, read_header
from recsys_emb.data.sources._splits import RandomSplit, TimeSplit
from recsys_emb.data.sources._table_options import MultiValuedSpec, SequenceSpec, TableOptions
from recsys_emb.data.sources.base import Block, RawFields, Source, register
from recsys_emb.data.store import SPLITS
from recsys_emb.errors import UserError

BLOCK_ROWS = 1 << 18
# No field is called like these, which begin with a space.
_FIELD, _LABEL, _WEIGHT, _SPLIT, _TIME = " field:", " label", " weight", " split", " time"


@register("table")
class Table(Source):
    """CSV (header in the first line), TSV or Parquet; a folder or a glob of such files is read in order of names.

    In text files categorical values are texts (007 is not 7) and an empty one is missing, a value of its own.
    A row that does not parse, or whose label, split, time or weight is not what it must be, is rejected.
    """

    summary = "any CSV, TSV or Parquet with a YAML file that says which column is what (--schema)"
    Options = TableOptions
    options: TableOptions

    def files(self) -> list[Path]:
        return find_files(self.path)

    def fields(self) -> RawFields:
        return self.options.raw_fields()

    def blocks(self) -> Iterator[Block]:
        spec = self.options.split
        by_time = None
        if spec.time is not None:
            times = [rows.frame[_TIME].to_numpy() for rows in self._rows()]
            by_time = TimeSplit(np.concatenate(times) if times else np.zeros(0), spec.ratios)
        at_random = RandomSplit(spec.ratios, spec.seed)
        names = [f.name for f in self.options.fields]
        for rows in self._rows():
            frame = rows.frame
            if by_time is not None:
                codes = by_time.codes(frame[_TIME].to_numpy())
            elif spec.column is not None:
                codes = frame[_SPLIT].to_numpy()
            else:
                codes = at_random.codes(len(frame))
            weights = frame[_WEIGHT].to_numpy() if self.options.weight is not None else None
            yield Block(frame.select(names), frame[_LABEL].to_numpy(), codes, weights, rows.rejected)

    def inputs(self) -> Iterator[Block]:
        """Columns of the fields are enough: label, weight, split and time need not be there."""
        for rows in self._rows(labelled=False):
            zeros = np.zeros(len(rows.frame), np.uint8)
            yield Block(rows.frame, zeros, zeros, rejected=rows.rejected, lines=rows.lines)

    @property
    def _list_fields(self) -> list[MultiValuedSpec | SequenceSpec]:
        return [*self.options.multi_valued, *self.options.sequences]

    def _rows(self, labelled: bool = True) -> Iterator[Rows]:
        """Good rows: the columns of ``blocks`` and, under names that no field can have, label, split, time, weight."""
        roles = self._roles(labelled)
        for file in self.files():
            for rows in _read_parquet(file, roles) if _is_parquet(file) else self._read_text(file, roles):
                yield self._checked_fields(self._checked_row(rows) if labelled else rows)

    def _roles(self, labelled: bool) -> dict[str, str]:
        """Every column that is needed, and the key of the schema that asks for it."""
        o = self.options
        roles = {f.source_column: f"field {f.name!r}" for f in self.options.fields}
        if not labelled:
            return roles
        keys = {"label": o.label, "weight": o.weight, "split.column": o.split.column, "split.time": o.split.time}
        return roles | {column: key for key, column in keys.items() if column is not None}

    def _read_text(self, file: Path, roles: dict[str, str]) -> Iterator[Rows]:
        o = self.options
        tabs = {".tsv", ".tab"} & set(file.suffixes)
        separator = o.separator or ("\t" if tabs else ",")
        header = _header(file, separator)
        _check_header(file, header, roles)
        for f in self._list_fields:
            if f.separator is None:
                raise UserError(f"field {f.name!r}: separator is missing; a text file such as {file} needs one")
        numeric = {f.source_column for f in o.dense} | {c for c in (o.label, o.weight) if c in roles}
        numeric -= {f.source_column for f in o.fields if f not in o.dense} | {o.split.column, o.split.time}
        form = Format(
            {name: pl.Float64 if name in numeric else pl.String for name in header},
            separator,
            quote='"',
            null_values=o.null_values,
        )
        for chunk in read_chunks(file, quote='"', header=True):
            yield parse(chunk, form)

    def _checked_row(self, rows: Rows) -> Rows:
        """Label, weight, split and time."""
        o = self.options
        rows = _number(rows, o.label, _LABEL, "label")
        label = rows.frame[_LABEL]
        if o.label_threshold is None:
            rows = rows.reject(~label.is_in([0.0, 1.0]).fill_null(False), quoting(label, "label is not 0 or 1"))
            rows = rows.with_column((rows.frame[_LABEL]).cast(pl.UInt8))
        else:
            rows = rows.reject(label.is_null(), "label is missing")
            rows = rows.with_column((rows.frame[_LABEL] > o.label_threshold).cast(pl.UInt8))
        if o.weight is not None:
            rows = _number(rows, o.weight, _WEIGHT, "weight")
            weight = rows.frame[_WEIGHT]
            rows = rows.reject(~(weight >= 0).fill_null(False), quoting(weight, "weight is missing or negative"))
            rows = rows.with_column(rows.frame[_WEIGHT].cast(pl.Float32))
        if o.split.column is not None:
            split = rows.frame[o.split.column].cast(pl.String)
            code = split.replace_strict(dict(zip(SPLITS, range(3))), default=None, return_dtype=pl.UInt8)
            rows = rows.with_column(code.alias(_SPLIT))
            rows = rows.reject(code.is_null(), quoting(split, f"split is not {', '.join(SPLITS)}"))
        if o.split.time is not None:
            time = rows.frame[o.split.time]
            rows = rows.with_column(_times(time).alias(_TIME))
            rows = rows.reject(rows.frame[_TIME].is_null(), quoting(time, "time is neither a number nor a date"))
        return rows

    def _checked_fields(self, rows: Rows) -> Rows:
        o = self.options
        for spec in o.dense:
            rows = _number(rows, spec.source_column, f"{_FIELD}{spec.name}", spec.name)
        for item in self._list_fields:
            lists = _lists(rows.frame[item.source_column], item)
            rows = rows.with_column(lists.alias(f"{_FIELD}{item.name}"))
        for sequence in o.sequences:
            if sequence.aligned_with is not None:
                own, other = (
                    rows.frame[f"{_FIELD}{n}"].list.len().fill_null(0) for n in (sequence.name, sequence.aligned_with)
                )
                rows = rows.reject(own != other, f"{sequence.name} and {sequence.aligned_with} differ in length")
        for c in o.categorical:
            rows = rows.with_column(rows.frame[c.source_column].alias(f"{_FIELD}{c.name}"))
        return rows.select({f"{_FIELD}{f.name}": f.name for f in self.options.fields}, (_LABEL, _WEIGHT, _SPLIT, _TIME))


def _number(rows: Rows, column: str, name: str, what: str) -> Rows:
    """Adds ``column`` as finite Float64 under ``name``; null where missing."""
    raw = rows.frame[column]
    text = raw.str.strip_chars() if raw.dtype == pl.String else raw
    if raw.dtype.is_nested() or raw.dtype.is_temporal():
        raise UserError(f"{rows.file}: column {column!r} holds {raw.dtype}, {what} needs numbers")
    number = text.cast(pl.Float64, strict=False).fill_nan(None)
    rows = rows.with_column(number.alias(name))
    bad = (number.is_null() & raw.is_not_null() & (raw.cast(pl.String) != "NaN")) | number.is_infinite().fill_null(
        False
    )
    return rows.reject(bad, quoting(raw, f"{what} is not a number"))


def _lists(values: pl.Series, spec: MultiValuedSpec | SequenceSpec) -> pl.Series:
    """A List column; of text, the parts between separators, and none of an empty text."""
    if isinstance(values.dtype, (pl.List, pl.Array)):
        return values.cast(pl.List(values.dtype.inner))
    if spec.separator is None:
        raise UserError(f"field {spec.name!r}: column {spec.source_column!r} is no list; give its separator")
    texts = values.cast(pl.String)
    return texts.set(texts == "", None).str.split(spec.separator)


def _times(values: pl.Series) -> pl.Series:
    """Numbers that order the rows: numbers as they are, dates as what polars stores; of texts either."""
    if values.dtype.is_temporal():
        return values.to_physical().cast(pl.Int64)
    if values.dtype != pl.String:
        return values.fill_nan(None) if values.dtype.is_float() else values
    numbers = values.cast(pl.Float64, strict=False).fill_nan(None)
    if numbers.null_count() < len(numbers):
        return numbers
    try:
        return values.str.to_datetime(strict=False, time_unit="us").cast(pl.Int64).cast(pl.Float64)
    except pl.exceptions.ComputeError:  # no text of the block looks like a date
        return numbers


def _is_parquet(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(4) == b"PAR1" or file.suffix == ".parquet"


def _read_parquet(file: Path, roles: dict[str, str]) -> Iterator[Rows]:
    try:
        with pq.ParquetFile(file) as table:
            _check_header(file, table.schema_arrow.names, roles)
            start = 1
            for batch in table.iter_batches(BLOCK_ROWS, columns=list(roles)):
                frame = pl.DataFrame(batch)
                yield Rows(frame, np.arange(start, start + len(frame)), file.name, partial(_row_texts, frame, start))
                start += len(frame)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _row_texts(frame: pl.DataFrame, start: int, numbers: Sequence[int]) -> list[str]:
    return [str(frame.row(n - start, named=True)) for n in numbers]


def _header(file: Path, separator: str) -> list[str]:
    try:
        return next(csv.reader([read_header(file)], delimiter=separator, strict=True))
    except csv.Error as error:
        raise UserError(f"{file} line 1: no header of column names ({error})") from None


def _check_header(file: Path, header: Sequence[str], roles: dict[str, str]) -> None:
    twice = sorted({n for n in header if header.count(n) > 1})
    if twice:
        raise UserError(f"{file}: column {twice[0]!r} occurs twice")
    for column, role in roles.items():
        if column not in header:
            raise UserError(f"{file}: no column {column!r}, which {role} needs; it has {', '.join(header)}")
