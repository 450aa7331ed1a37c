"""The first rows of a table, read before anything is known of its columns."""

from __future__ import annotations

import csv
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_emb.data.column_types import TAKES, kind_of
from recsys_emb.data.frame import from_arrow
from recsys_emb.data.sources._delimited import Format, parse
from recsys_emb.data.sources._files import Chunk, find_files, folder_columns, read_chunks, read_header
from recsys_emb.data.sources.table import column_names, default_separator, is_parquet
from recsys_emb.data.values import spell_by_value
from recsys_emb.errors import UserError

ROWS = 100_000
_FILES = 8
"""How many of the files are looked at, at most."""
_SEPARATORS = (",", "\t", ";", "|")
_MISSING = ("NULL", "null", "NA", "N/A", "n/a", "nan", "None", "none", "\\N", "<NA>", "#N/A", "-", "?")
_ALWAYS_MISSING = ("NULL", "\\N", "<NA>", "#N/A")
_READABLE = {"null", "list of null", *(kind for kinds in TAKES.values() for kind in kinds)}


@dataclass(frozen=True)
class Column:
    """A column of the sample. ``values`` are as stored; texts have no space around them, empty ones are null."""

    name: str
    values: pl.Series

    @cached_property
    def present(self) -> pl.Series:
        """The values that are not missing."""
        return self.values.drop_nulls()

    @cached_property
    def texts(self) -> pl.Series:
        """String, the values that are not missing, spelled by what they are worth."""
        texts = self.present.cast(pl.String)
        spelled = spell_by_value(texts.to_arrow().cast(pa.large_string()))
        return pl.Series(self.name, spelled, dtype=pl.String)

    @cached_property
    def counts(self) -> dict[str, int]:
        """How often each value occurs, the most frequent first."""
        table = self.texts.rename("text").value_counts(sort=True)
        return dict(zip(table["text"].to_list(), table["count"].to_list()))

    @property
    def missing(self) -> float:
        """Share of the rows."""
        return self.values.null_count() / max(len(self.values), 1)

    @cached_property
    def numbers(self) -> pl.Series | None:
        """Float64 of the values that are not missing; None unless all but a few, which are null, are finite numbers."""
        if self.present.dtype.is_nested() or self.present.dtype.is_temporal() or self.present.dtype == pl.Boolean:
            return None
        numbers = self.present.cast(pl.String).cast(pl.Float64, strict=False)
        numbers = numbers.set(~numbers.is_finite().fill_null(True), None)
        return numbers if numbers.null_count() <= FEW * len(numbers) else None

    @cached_property
    def integers(self) -> bool:
        """Whether the values are whole numbers as numbers are written: 7, not 007."""
        return self.numbers is not None and bool(self.texts.str.contains(r"^(?:0|-?[1-9][0-9]*)$").all())


def share(flags: pl.Series) -> float:
    """The share of the values that hold; 0 of none."""
    return float(flags.sum()) / max(len(flags), 1)


FEW = 0.002
"""Share of values that may be otherwise: `data prepare` refuses a hundredth of malformed rows, of all columns."""


@dataclass(frozen=True)
class Sample:
    """Rows of the first file, or of some of several.

    separator:   of text files, when it is not the usual one of their name
    null_values: texts that stand for missing values
    unreadable:  columns of types that no role takes, with the type
    rows:        rows read
    malformed:   lines that are no rows
    whole:       whether there are no others
    """

    file: Path
    columns: list[Column]
    separator: str | None
    null_values: list[str]
    unreadable: dict[str, str]
    rows: int
    malformed: int
    whole: bool


@dataclass(frozen=True)
class _Part:
    """The first rows of a file, as in ``Sample``."""

    frame: pl.DataFrame
    whole: bool
    separator: str | None = None
    malformed: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def read_sample(path: Path) -> Sample:
    """The first rows, at most ``ROWS``.

    Args:
        path: a file, a folder or a glob; of many files, the first rows of some.

    Raises:
        UserError: nothing is there, no header, or no rows.
    """
    files = find_files(path)
    chosen = sorted({i * (len(files) - 1) // max(_FILES - 1, 1) for i in range(_FILES)})
    parts = [_first_rows(files[i], ROWS // len(chosen)) for i in chosen]
    frame = pl.concat([part.frame for part in parts], how="diagonal_relaxed")
    if not len(frame):
        raise UserError(f"{files[0]}: no rows to guess from")
    null_values = [] if is_parquet(files[0]) else _null_values(frame)
    if null_values:
        texts = pl.col(pl.String)
        frame = frame.with_columns(pl.when(~texts.is_in(null_values)).then(texts))
    return Sample(
        file=files[0],
        columns=[Column(name, frame[name]) for name in frame.columns],
        separator=parts[0].separator,
        null_values=null_values,
        unreadable=parts[0].unreadable,
        rows=len(frame),
        malformed=sum(part.malformed for part in parts),
        whole=len(parts) == len(files) and all(part.whole for part in parts),
    )


def _first_rows(file: Path, rows: int) -> _Part:
    """With the columns that its folders name; empty texts and NaN are null."""
    part = _parquet(file, rows) if is_parquet(file) else _text(file, rows)
    frame = part.frame.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None))
    frame = frame.with_columns(pl.col(pl.String, pl.Categorical, pl.Enum).cast(pl.String).str.strip_chars())
    frame = frame.with_columns(pl.when(pl.col(pl.String) != "").then(pl.col(pl.String)))
    named = {name: value for name, value in folder_columns(file).items() if name not in frame.columns}
    return replace(
        part, frame=frame.with_columns(pl.lit(value, pl.String).alias(name) for name, value in named.items())
    )


def _parquet(file: Path, rows: int) -> _Part:
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            kinds = {name: kind_of(schema.field(name).type) for name in schema.names}
            unreadable = {name: kind for name, kind in kinds.items() if kind not in _READABLE}
            kept = [name for name in schema.names if name not in unreadable]
            batch = next(table.iter_batches(rows, columns=kept), None)
            frame = pl.DataFrame() if batch is None else from_arrow(batch)
            return _Part(frame, len(frame) == table.metadata.num_rows, unreadable=unreadable)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file}: not a readable Parquet file ({str(error).splitlines()[0]})") from None


def _text(file: Path, rows: int) -> _Part:
    chunks = read_chunks(file, quote='"', header=True)
    chunk, usual = next(chunks, None), default_separator(file)
    separator = _separator(read_header(file), chunk, usual)
    names = column_names(file, separator)
    if chunk is None:
        return _Part(pl.DataFrame(), True)
    read = parse(chunk, Format(dict.fromkeys(names, pl.String), separator, quote='"'))
    whole = len(read.frame) <= rows and next(chunks, None) is None
    return _Part(read.frame.head(rows), whole, None if separator == usual else separator, len(read.rejected))


def _separator(header: str, chunk: Chunk | None, usual: str) -> str:
    """What splits the header and the first lines into the same number of values, more than one; else the usual one."""
    lines = [] if chunk is None else chunk.text[:100_000].decode(errors="replace").splitlines()[:50]
    best, widest = usual, 1
    for separator in sorted(_SEPARATORS, key=lambda s: s != usual):
        width, *widths = (len(values) for values in csv.reader([header, *lines], delimiter=separator))
        same = sum(w == width for w in widths) >= 0.9 * len(widths)
        if same and width > widest:
            best, widest = separator, width
    return best


def _null_values(frame: pl.DataFrame) -> list[str]:
    """Texts that stand for missing values: some always, others where all the rest of a column are numbers or times."""
    found: dict[str, None] = {}
    for name in frame.columns:
        texts = frame[name].drop_nulls()
        spelled = texts.filter(texts.is_in(_MISSING)).unique().to_list()
        rest = texts.filter(~texts.is_in(_MISSING))
        numeric = len(rest) and (rest.str.contains(r"^[+-]?[0-9][0-9.:/TZe +-]*$").sum() >= (1 - FEW) * len(rest))
        found |= dict.fromkeys(text for text in spelled if numeric or text in _ALWAYS_MISSING)
    return sorted(found)
