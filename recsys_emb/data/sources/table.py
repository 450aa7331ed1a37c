"""Any CSV, TSV or Parquet file, with a schema that says which column is what."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
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
from recsys_emb.data.sources._splits import RandomSplit, StartSplit, TimeSplit
from recsys_emb.data.sources._table_options import MultiValuedSpec, SequenceSpec, TableOptions
from recsys_emb.data.sources._times import TimeColumn
from recsys_emb.data.sources.base import Block, RawFields, Source, SourceOptions, register
from recsys_emb.data.store import SPLITS
from recsys_emb.data.values import canonical
from recsys_emb.errors import UserError

BLOCK_ROWS = 1 << 18
# No field is called like these, which begin with a space.
_FIELD, _LABEL, _WEIGHT, _SPLIT, _TIME, _KEPT = " field:", " label", " weight", " split", " time", " kept:"
_NUMERIC = ("dense", "weight")
"""Roles whose columns of a text file are read as numbers."""


class Use(NamedTuple):
    """A column of the files: what it is read as (None: it is passed on), what asks for it in words, whether
    texts are lists by a separator."""

    column: str
    role: Role | None
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

    def __init__(self, path: Path | None, options: SourceOptions) -> None:
        super().__init__(path, options)
        self._kept: list[str] = []

    def files(self) -> list[Path]:
        return find_files(self.path)

    def fields(self) -> RawFields:
        return self.options.raw_fields()

    @property
    def dataset_name(self) -> str:
        """The name of the file, of the folder, or of the folder that a glob is in."""
        path = Path(self.path or self.name)
        plain = next(p for p in (path, *path.parents) if not set(p.name) & set("*?["))
        return plain.name.split(".")[0] or self.name

    def blocks(self) -> Iterator[Block]:
        codes = self._split()
        for rows in self._rows(labelled=True, time=self._time(), split=True):
            yield self._block(rows, codes(rows.frame))

    def labelled(self) -> Iterator[Block]:
        """Columns of the fields, the label and the weight are enough: a split and times need not be there."""
        for rows in self._rows(labelled=True):
            yield self._block(rows, np.zeros(len(rows.frame), np.uint8))

    def inputs(self) -> Iterator[Block]:
        """Columns of the fields are enough: label, weight, split and time need not be there."""
        for rows in self._rows(labelled=False):
            yield self._block(rows, np.zeros(len(rows.frame), np.uint8))

    def keep(self, columns: Sequence[str]) -> None:
        self._kept = list(dict.fromkeys(columns))

    def _block(self, rows: Rows, split: np.ndarray) -> Block:
        frame = rows.frame
        zeros = np.zeros(len(frame), np.uint8)
        return Block(
            frame.select(f.name for f in self.options.fields),
            frame[_LABEL].to_numpy() if _LABEL in frame.columns else zeros,
            split,
            frame[_WEIGHT].to_numpy() if _WEIGHT in frame.columns else None,
            rejected=rows.rejected,
            lines=rows.lines,
            kept=frame.select(pl.col(f"{_KEPT}{c}").alias(c) for c in self._kept) if self._kept else None,
        )

    @property
    def _list_fields(self) -> list[MultiValuedSpec | SequenceSpec]:
        return [*self.options.multi_valued, *self.options.sequences]

    def _time(self) -> TimeColumn | None:
        spec = self.options.split
        return None if spec.time is None else TimeColumn(spec.time, spec.time_format)

    def _split(self) -> Callable[[pl.DataFrame], np.ndarray]:
        """From the next rows to their split codes, uint8 [n]."""
        spec, time = self.options.split, self._time()
        if time is not None:
            read = [rows.frame[_TIME].to_numpy() for rows in self._rows(labelled=True, time=time, split=True)]
            times = np.concatenate(read) if read else np.zeros(0)
            by_time = StartSplit(times, spec, time) if spec.test is not None else TimeSplit(times, spec.ratios)
            return lambda frame: by_time.codes(frame[_TIME].to_numpy())
        if spec.column is not None:
            return lambda frame: frame[_SPLIT].to_numpy()
        if spec.all is not None:
            code = SPLITS.index(spec.all)
            return lambda frame: np.full(len(frame), code, np.uint8)
        at_random = RandomSplit(spec.ratios, spec.seed)
        return lambda frame: at_random.codes(len(frame))

    def _rows(self, labelled: bool, time: TimeColumn | None = None, split: bool = False) -> Iterator[Rows]:
        """Good rows: the fields and, under names that no field can have, what else there is.

        Args:
            labelled: with label and weight, else with the columns to keep.
            time: reads the times that tell the split.
            split: with what tells the split.
        """
        uses = self._uses(labelled, split)
        for file in self.files():
            for rows in _read_parquet(file, uses) if is_parquet(file) else self._read_text(file, uses):
                if labelled:
                    rows = self._checked_row(rows, time, split)
                else:
                    kept = [rows.frame[column].alias(f"{_KEPT}{column}") for column in self._kept]
                    rows = rows.with_columns(kept)
                yield self._checked_fields(rows)
        if time is not None:
            time.check_units()

    def _uses(self, labelled: bool, split: bool) -> list[Use]:
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
        keys: dict[str, tuple[Role, str | None]] = {}
        if labelled:
            keys |= {"label": ("label", o.label.column), "weight": ("weight", o.weight)}
        if split:
            keys |= {"split.column": ("split", o.split.column), "split.time": ("time", o.split.time)}
        uses += [Use(column, role, key) for key, (role, column) in keys.items() if column is not None]
        return uses if labelled else [*uses, *(Use(column, None, "--keep") for column in self._kept)]

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

    def _checked_row(self, rows: Rows, time: TimeColumn | None, split: bool) -> Rows:
        """Label, weight, and, where they are asked for, time and split."""
        o = self.options
        rows = read_label(rows, o.label, o.label_threshold, _LABEL)
        if o.weight is not None:
            rows = _number(rows, o.weight, _WEIGHT, "weight")
            weight = rows.frame[_WEIGHT]
            rows = rows.reject(~(weight >= 0).fill_null(False), quoting(weight, "weight is missing or negative"))
            rows = rows.with_column(rows.frame[_WEIGHT].cast(pl.Float32))
            large = rows.frame[_WEIGHT].is_infinite()
            rows = rows.reject(large, quoting(rows.frame[o.weight], "weight is too large"))
        if split and o.split.column is not None:
            texts = rows.frame[o.split.column].cast(pl.String)
            code = texts.replace_strict(dict(zip(SPLITS, range(3))), default=None, return_dtype=pl.UInt8)
            rows = rows.with_column(code.alias(_SPLIT))
            rows = rows.reject(code.is_null(), quoting(texts, f"split is not {', '.join(SPLITS)}"))
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
        rows = rows.select(names, (_LABEL, _WEIGHT, _SPLIT, _TIME, *(f"{_KEPT}{column}" for column in self._kept)))
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
    """What separates the values of a text file, by its name."""
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
                if use.role is not None:
                    check_type(use.role, table.schema_arrow.field(use.column).type, where, separated=use.separated)
            start = 2  # as in the CSV file of these rows, whose header is line 1
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
