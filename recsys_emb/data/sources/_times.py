"""The column that a split by time orders rows by: one kind of time and one unit over all files, or an error."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from recsys_emb.data.iso_times import read_iso
from recsys_emb.data.sources._delimited import Rows, quoting
from recsys_emb.errors import UserError
from recsys_emb.files import one_line

_NONE, _NUMBER, _LOCAL, _ZONED = range(4)
_KINDS = ("no time", "a number", "a time without a zone", "a time with a zone")

_EPOCH = (7.9e8, 4.1e9)
"""Seconds from 1970 to 1995 and to 2099: numbers between these, or a power of 1000 above, are times since 1970."""
_POWERS = {"seconds": 0, "milliseconds": 3, "microseconds": 6, "nanoseconds": 9}
_DAYS = "YYYYMMDD"


class TimeColumn:
    """The times of all rows as numbers that compare: microseconds since 1970 of dates and times, numbers as they are.

    Args:
        column: its name in the files.
        written: how texts are written, as for ``strptime``; ISO 8601, year first, or numbers when None.
    """

    def __init__(self, column: str, written: str | None) -> None:
        self._column, self._written = column, written
        self._kind = _NONE  # that of most rows of the first block
        self._example = ""
        self._units: dict[str, _Units] = {}  # by file

    def read(self, rows: Rows, name: str) -> Rows:
        """Adds the times, Int64 or Float64, as column ``name``; rejects rows without one or of another kind than most.

        Raises:
            UserError: no row has a time of the kind that the rows before have.
        """
        values = rows.frame[self._column]
        times, kinds = read_times(values, self._written)
        found = np.bincount(kinds[kinds != _NONE], minlength=len(_KINDS))
        if found.any():
            most = int(found.argmax())
            example = _place(values, rows, int((kinds == most).argmax()))
            if self._kind == _NONE:
                self._kind, self._example = most, example
            if not found[self._kind]:
                raise UserError(
                    f"split.time: column {self._column!r} is {_KINDS[self._kind]} in {self._example} and "
                    f"{_KINDS[most]} in {example}; give all rows one kind"
                )
        rows = rows.with_column(times.alias(name))
        if self._kind == _NUMBER:
            self._units.setdefault(rows.file, _Units()).add(rows, values, times.to_numpy(), kinds == _NUMBER)
        wrong = (kinds != self._kind) | (kinds == _NONE)
        return rows.reject(wrong, self._reasons(values, kinds)) if wrong.any() else rows

    def check_units(self) -> None:
        """Raises UserError when numbers that were read look like times in different units."""
        seen: dict[str, str] = {}
        for units in self._units.values():
            for unit, example in units.likely():
                seen.setdefault(unit, example)
        if len(seen) > 1:
            (a, first), (b, second), *_ = seen.items()
            raise UserError(
                f"split.time: column {self._column!r} looks like {_unit(a)} in {first} and like {_unit(b)} in {second};"
                " give all rows one unit"
            )

    def number(self, given: int | float | str, key: str) -> int | float:
        """A time of the schema as the number that ``read`` makes of it; after all rows have been read.

        A date compares with times with a zone as one in UTC, and with numbers where these are in one known unit.

        Args:
            given: a number, or a text in ISO 8601 or as the column's texts are written.
            key: of the schema, for messages.

        Raises:
            UserError: it is none, or not of the column's kind.
        """
        times, kinds = read_times(pl.Series([given]), None)
        if kinds[0] == _NONE and self._written is not None:
            times, kinds = read_times(pl.Series([str(given)]), self._written)
        if kinds[0] == _NONE:
            raise UserError(f"{key}: {given!r} is no time; give one such as 2026-11-20 or 2026-11-20 12:00:00")
        time, is_number = times[0], kinds[0] == _NUMBER
        if is_number == (self._kind == _NUMBER) or self._kind == _NONE:
            return time
        units = {unit for counted in self._units.values() for unit, _ in counted.likely()}
        if is_number or len(units) != 1:
            raise UserError(
                f"{key}: {given!r} is {_KINDS[int(kinds[0])]}, column {self._column!r} is {_KINDS[self._kind]} in "
                f"{self._example}; give one like it"
            )
        (unit,) = units
        if unit == _DAYS:
            return int(pl.Series([time]).cast(pl.Datetime("us")).dt.strftime("%Y%m%d")[0])
        return time / 10 ** (6 - _POWERS[unit])

    def _reasons(self, values: pl.Series, kinds: np.ndarray) -> pl.Series:
        """String [n]: why a row is rejected."""
        none = f"time is not written as {self._written}"
        if self._written is None:
            none = "time is neither a number nor a date, year first (else give split.time_format)"
        reasons = [none, *(f"time is {kind}, others are {_KINDS[self._kind]}" for kind in _KINDS[1:])]
        return pl.select(
            pl.coalesce(quoting(values, r).set(pl.Series(kinds != k), None) for k, r in enumerate(reasons))
        ).to_series()


def read_times(values: pl.Series, written: str | None) -> tuple[pl.Series, np.ndarray]:
    """Times [n], Int64 or Float64, null where there is none, and of which kind each is, uint8 [n].

    Args:
        values: a column of any type that a split by time takes (column_types.py).
        written: as for ``TimeColumn``; also for integers such as 20260131.
    """
    dtype = values.dtype
    if dtype.is_temporal():
        zoned = isinstance(dtype, pl.Datetime) and dtype.time_zone is not None
        times = values.dt.epoch("us")
        return times, _kinds(times, _ZONED if zoned else _LOCAL)
    if written is not None and (dtype.is_integer() or not dtype.is_numeric()):
        return _read_written(values.cast(pl.String), written)
    if dtype.is_numeric():
        numbers = _numbers(values)
        return numbers, _kinds(numbers, _NUMBER)
    texts = values.cast(pl.String)
    numbers = _numbers(texts)
    kinds = _kinds(numbers, _NUMBER)
    rest = numbers.is_null() & texts.is_not_null()
    if not rest.any():
        return numbers, kinds
    iso = _read_iso(texts.set(~rest, None))
    kinds = np.where(iso["micros"].is_not_null(), np.where(iso["zoned"], _ZONED, _LOCAL), kinds).astype(np.uint8)
    return pl.select(pl.coalesce(numbers, iso["micros"])).to_series(), kinds


def _read_written(texts: pl.Series, written: str) -> tuple[pl.Series, np.ndarray]:
    try:
        times = texts.str.to_datetime(written, strict=False, time_unit="us")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"split.time_format: {written!r} is no form of a date ({one_line(error)})") from None
    return read_times(times, None)


def _read_iso(texts: pl.Series) -> pl.DataFrame:
    """``micros`` Int64, null where there is no time, and ``zoned``; also of dates with slashes, year first."""
    slashed = texts.str.contains("/", literal=True).any()
    read = read_iso(texts.str.replace_all("/", "-", literal=True) if slashed else texts)
    fraction = pl.col("fraction").str.head(6).str.pad_end(6, "0").cast(pl.Int64)
    return read.select((pl.col("seconds") * 1_000_000 + fraction).alias("micros"), "zoned")


def _numbers(values: pl.Series) -> pl.Series:
    """Int64 where all that are numbers are integers, else Float64; null where missing or no finite number."""
    numbers = None
    if values.dtype.is_integer() or values.dtype == pl.String:
        numbers = values.cast(pl.Int64, strict=False)
        if numbers.null_count() == values.null_count():
            return numbers
    broken = values.cast(pl.Float64, strict=False).fill_nan(None)
    broken = broken.set(broken.is_infinite(), None)
    return broken if numbers is None or broken.null_count() < numbers.null_count() else numbers


def _kinds(times: pl.Series, kind: int) -> np.ndarray:
    return np.where(times.is_not_null(), np.uint8(kind), np.uint8(_NONE))


class _Units:
    """How many numbers of a file look like times of each unit."""

    def __init__(self) -> None:
        self._numbers = 0
        self._counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}

    def add(self, rows: Rows, values: pl.Series, times: np.ndarray, mine: np.ndarray) -> None:
        """``times`` [n] where ``mine`` (bool [n]) holds."""
        self._numbers += int(mine.sum())
        for unit, fits in fitting_units(times):
            at = fits & mine
            if at.any():
                self._counts[unit] = self._counts.get(unit, 0) + int(at.sum())
                self._examples.setdefault(unit, _place(values, rows, int(at.argmax())))

    def likely(self) -> Iterator[tuple[str, str]]:
        """Units of a tenth of the numbers or more, where nearly all have one, with an example of each.

        A count, or a time from an arbitrary start, falls into none or passes through several.
        """
        if sum(self._counts.values()) >= 0.9 * self._numbers:
            for unit, count in self._counts.items():
                if count >= 0.1 * self._numbers:
                    yield unit, self._examples[unit]


def fitting_units(times: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Units of time since 1970, and days as YYYYMMDD; bool [n], which numbers look like times in them."""
    with np.errstate(invalid="ignore"):
        for unit, power in _POWERS.items():
            low, high = (edge * 10**power for edge in _EPOCH)
            yield unit, (times >= low) & (times <= high)
        month, day = times // 100 % 100, times % 100
        year = (times >= 1900_01_01) & (times <= 2100_12_31)
        yield _DAYS, year & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31)


def _unit(name: str) -> str:
    return name if name == _DAYS else f"{name} since 1970"


def _place(values: pl.Series, rows: Rows, at: int) -> str:
    return f"{rows.file} line {rows.lines[at]} ({values[at]})"
