"""Any CSV, TSV or Parquet file, with a schema that says which column is what."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_emb.data.column_types import Role, check_type
from recsys_emb.data.dense import read_numbers
from recsys_emb.data.frame import from_arrow
from recsys_emb.data.lists import canonical_lists, misaligned
from recsys_emb.data.sources._delimited import Format, Rows, parse, quoting
from recsys_emb.data.sources._files import find_files, folder_columns, read_chunks, read_header
from recsys_emb.data.sources._label import read_label
from recsys_emb.data.sources._list_texts import in_brackets, split_texts
from recsys_emb.data.sources._splits import RandomSplit, TimeSplit
from recsys_emb.data.sources._table_options import MultiValuedSpec, SequenceSpec, TableOptions
from recsys_emb.data.sources._times import TimeColumn
from recsys_emb.data.sources.base import Block, RawFields, Source, register
from recsys_emb.data.store import SPLITS
from recsys_emb.data.values import canonical
from recsys_emb.errors import UserError

BLOCK_ROWS = 1 << 18
# No field is called like these, which begin with a space.
_FIELD, _LABEL, _WEIGHT, _SPLIT, _TIME = " field:", " label", " weight", " split", " time"
_NUMERIC = ("dense", "weight")
"""Roles whose columns of a text file are read as numbers."""


class Use(NamedTuple):
    """A column of the files: what it is read as, what asks for it in words, whether texts are lists by a separator."""

    column: str
    role: Role
    asked_by: str
    separated: bool = False


@register("table")
class Table(Source):
    """CSV (header in the first line), TSV or Parquet; a folder or a glob of such files is read in order of names.

    Folders named ``column=value`` give the files in them that column. Text may be compressed or UTF-16 (_streams.py).
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
        by_time = TimeSplit(self._times(), spec.ratios) if spec.time is not None else None
        at_random = RandomSplit(spec.ratios, spec.seed)
        names = [f.name for f in self.options.fields]
        for rows in self._rows():
            frame = rows.frame
            if by_time is not None:
                codes = by_time.codes(frame[_TIME].to_numpy())
            elif spec.column is not None:
                codes = frame[_SPLIT].to_numpy()
            elif spec.all is not None:
                codes = np.full(len(frame), SPLITS.index(spec.all), np.uint8)
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

    def _times(self) -> np.ndarray:
        """int64 or float64 [rows], the times of all good rows."""
        times = [rows.frame[_TIME].to_numpy() for rows in self._rows()]
        return np.concatenate(times) if times else np.zeros(0)

    def _rows(self, labelled: bool = True) -> Iterator[Rows]:
        """Good rows: the columns of ``blocks`` and, under names that no field can have, label, split, time, weight."""
        uses, spec = self._uses(labelled), self.options.split
        time = TimeColumn(spec.time, spec.time_format) if labelled and spec.time is not None else None
        for file in self.files():
            for rows in _read_parquet(file, uses) if is_parquet(file) else self._read_text(file, uses):
                yield self._checked_fields(self._checked_row(rows, time) if labelled else rows)
        if time is not None:
            time.check_units()

    def _uses(self, labelled: bool) -> list[Use]:
        """Every column that is needed, what it is read as, and the key of the schema that asks for it."""
        o = self.options
        fields: dict[Role, Sequence[Any]] = {
            **{"dense": o.dense, "categorical": o.categorical},
            **{"multi_valued": o.multi_valued, "sequence": o.sequences},
        }
        uses = [
            Use(f.source_column, role, f"field {f.name!r}", getattr(f, "separator", None) is not None)
            for role, specs in fields.items()
            for f in specs
        ]
        if labelled:
            keys: dict[str, tuple[Role, str | None]] = {
                **{"label": ("label", o.label.column), "weight": ("weight", o.weight)},
                **{"split.column": ("split", o.split.column), "split.time": ("time", o.split.time)},
            }
            uses += [Use(column, role, key) for key, (role, column) in keys.items() if column is not None]
        return uses

    def _read_text(self, file: Path, uses: Sequence[Use]) -> Iterator[Rows]:
        o = self.options
        separator = o.separator or default_separator(file)
        header = column_names(file, separator)
        named = _named_by_folders(file, header, uses)
        numeric = {u.column for u in uses if u.role in _NUMERIC} - {u.column for u in uses if u.role not in _NUMERIC}
        form = Format(
            {name: pl.Float64 if name in numeric else pl.String for name in header},
            separator,
            quote='"',
            null_values=o.null_values,
        )
        for chunk in read_chunks(file, quote='"', header=True):
            yield parse(chunk, form).with_constants(named)

    def _checked_row(self, rows: Rows, time: TimeColumn | None) -> Rows:
        """Label, weight, split and, for a split by it, time."""
        o = self.options
        rows = read_label(rows, o.label, o.label_threshold, _LABEL)
        if o.weight is not None:
            rows = _number(rows, o.weight, _WEIGHT, "weight")
            weight = rows.frame[_WEIGHT]
            rows = rows.reject(~(weight >= 0).fill_null(False), quoting(weight, "weight is missing or negative"))
            rows = rows.with_column(rows.frame[_WEIGHT].cast(pl.Float32))
            large = rows.frame[_WEIGHT].is_infinite()
            rows = rows.reject(large, quoting(rows.frame[o.weight], "weight is too large"))
        if o.split.column is not None:
            split = rows.frame[o.split.column].cast(pl.String)
            code = split.replace_strict(dict(zip(SPLITS, range(3))), default=None, return_dtype=pl.UInt8)
            rows = rows.with_column(code.alias(_SPLIT))
            rows = rows.reject(code.is_null(), quoting(split, f"split is not {', '.join(SPLITS)}"))
        if time is not None:
            rows = time.read(rows, _TIME)
        return rows

    def _checked_fields(self, rows: Rows) -> Rows:
        o = self.options
        for spec in o.dense:
            rows = _number(rows, spec.source_column, f"{_FIELD}{spec.name}", spec.name)
        for item in self._list_fields:
            rows = _lists(rows, item, f"{_FIELD}{item.name}", keep_gaps=item.name in o.aligned)
        for c in o.categorical:
            ids = canonical(rows.frame[c.source_column], f"{rows.file}: column {c.source_column!r}")
            rows = rows.with_column(ids.alias(f"{_FIELD}{c.name}"))
        names = {f"{_FIELD}{f.name}": f.name for f in self.options.fields}
        rows = rows.select(names, (_LABEL, _WEIGHT, _SPLIT, _TIME))
        for sequence, wrong in misaligned(self.fields().sequences, rows.frame):
            rows = rows.reject(wrong, f"{sequence.name} and {sequence.aligned_with} differ in length")
        return rows


def _number(rows: Rows, column: str, name: str, what: str) -> Rows:
    """Adds ``column`` as finite Float64 under ``name``; null where missing."""
    raw = rows.frame[column]
    number, wrong = read_numbers(raw)
    return rows.with_column(number.alias(name)).reject(wrong, quoting(raw, f"{what} is not a number"))


def _lists(rows: Rows, spec: MultiValuedSpec | SequenceSpec, name: str, keep_gaps: bool) -> Rows:
    """Adds a List column as ``name``: lists as they are, or what texts say."""
    values = rows.frame[spec.source_column]
    if isinstance(values.dtype, (pl.List, pl.Array, pl.Null)):
        lists, wrong = values, None
    else:
        texts = values.cast(pl.String)
        bare = ~in_brackets(texts) & (texts != "")
        if spec.separator is None and bare.any():
            at = bare.arg_true()[0]
            raise UserError(
                f"field {spec.name!r}: separator is missing; {rows.file} line {rows.lines[at]} holds {texts[at]!r}, "
                "which is no list in brackets"
            )
        lists, wrong = split_texts(texts, spec.separator, keep_gaps=keep_gaps)
    canonical_ = canonical_lists(lists, f"{rows.file}: column {spec.source_column!r}")
    rows = rows.with_column(canonical_.alias(name))
    return rows if wrong is None else rows.reject(wrong, quoting(values, f"{spec.name} is no list"))


def default_separator(file: Path) -> str:
    """Of the values of a text file, by its name."""
    return "\t" if {".tsv", ".tab"} & set(file.suffixes) else ","


def is_parquet(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(4) == b"PAR1" or file.suffix == ".parquet"


def _read_parquet(file: Path, uses: Sequence[Use]) -> Iterator[Rows]:
    try:
        with pq.ParquetFile(file) as table:
            named = _named_by_folders(file, table.schema_arrow.names, uses)
            uses = [use for use in uses if use.column not in named]
            for use in uses:
                where = f"{file}: column {use.column!r} ({use.asked_by})"
                check_type(use.role, table.schema_arrow.field(use.column).type, where, separated=use.separated)
            start = 1
            for batch in table.iter_batches(BLOCK_ROWS, columns=list({use.column: None for use in uses})):
                frame = from_arrow(batch)
                rows = Rows(frame, np.arange(start, start + len(frame)), file.name, partial(_row_texts, frame, start))
                yield rows.with_constants(named)
                start += len(frame)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _row_texts(frame: pl.DataFrame, start: int, numbers: Sequence[int]) -> list[str]:
    return [str(frame.row(n - start, named=True)) for n in numbers]


def column_names(file: Path, separator: str) -> list[str]:
    """The header of a text file. Raises UserError when it is none, or has a name twice."""
    try:
        names = next(csv.reader([read_header(file)], delimiter=separator, strict=True))
    except csv.Error as error:
        raise UserError(f"{file} line 1: no header of column names ({error})") from None
    if names.count("") > 1:
        raise UserError(f"{file} line 1: {names.count('')} columns have no name; the first line must name the columns")
    _check_columns(file, names, ())
    return names


def _named_by_folders(file: Path, names: Sequence[str], uses: Sequence[Use]) -> dict[str, str | None]:
    """The values of columns that are needed and stand in no file but in the names of folders, ``column=value``.

    Raises:
        UserError: a column that is needed is nowhere.
    """
    needed = {use.column for use in uses}
    found = {c: value for c, value in folder_columns(file).items() if c in needed and c not in names}
    _check_columns(file, [*names, *found], uses)
    return found


def _check_columns(file: Path, names: Sequence[str], uses: Sequence[Use]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise UserError(f"{file}: column {twice[0]!r} occurs twice")
    for use in uses:
        if use.column not in names:
            have = ", ".join(map(repr, names))
            raise UserError(f"{file}: no column {use.column!r}, which {use.asked_by} needs; it has {have}")
