"""The Avazu click-through-rate challenge: the Kaggle CSV with a header; every field is categorical."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys_emb.data.schema import CategoricalField
from recsys_emb.data.sources._delimited import Format, Rows, parse, quoting
from recsys_emb.data.sources._fields import Ratios
from recsys_emb.data.sources._files import find_files, read_chunks, read_header
from recsys_emb.data.sources._splits import RandomSplit, TimeSplit
from recsys_emb.data.sources.base import Block, RawFields, Source, SourceOptions, register
from recsys_emb.errors import UserError

_COPIED = (
    *("C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category"),
    *("device_id", "device_ip", "device_model", "device_type", "device_conn_type"),
    *("C14", "C15", "C16", "C17", "C18", "C19", "C20", "C21"),
)
_FROM_HOUR = ("hour_of_day", "weekday", "is_weekend")
FIELDS = (*_FROM_HOUR, *_COPIED)
_NEEDED = ("click", "hour", *_COPIED)


class AvazuOptions(SourceOptions):
    """Options of ``avazu``."""

    split: Literal["random", "time"] = Field(
        "random", description="random by seed, or by time: by hour, rows of one hour in file order"
    )
    ratios: Ratios = Field((0.8, 0.1, 0.1), description="relative sizes of train, valid and test")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of the random split")


@register("avazu")
class Avazu(Source):
    """``train.csv`` of the challenge, plain or gzip.

    ``hour`` (YYMMDDHH) becomes hour of day, weekday (1 is Monday) and weekend; ``id`` is dropped.
    """

    summary = "Avazu click-through-rate challenge: train.csv (CSV with header), plain or gzip"
    Options = AvazuOptions
    options: AvazuOptions

    def files(self) -> list[Path]:
        return find_files(self.path)

    def fields(self) -> RawFields:
        return RawFields(categorical=tuple(CategoricalField(name=n, vocabulary=n) for n in FIELDS))

    def blocks(self) -> Iterator[Block]:
        options = self.options
        by_time = TimeSplit(self._times(), options.ratios) if options.split == "time" else None
        at_random = RandomSplit(options.ratios, options.seed)
        for rows in self._rows():
            codes = by_time.codes(rows.frame["hour"].to_numpy()) if by_time else at_random.codes(len(rows.frame))
            labels = rows.frame["click"].cast(pl.UInt8).to_numpy()
            yield Block(rows.frame.with_columns(_calendar()).select(FIELDS), labels, codes, rejected=rows.rejected)

    def inputs(self) -> Iterator[Block]:
        """The fields of ``train.csv``, or of ``test.csv``, which has no clicks."""
        for rows in self._rows(labelled=False):
            frame, zeros = rows.frame.with_columns(_calendar()).select(FIELDS), np.zeros(len(rows.frame), np.uint8)
            yield Block(frame, zeros, zeros, rejected=rows.rejected, lines=rows.lines)

    def _rows(self, labelled: bool = True) -> Iterator[Rows]:
        for file in self.files():
            form = Format(_columns(file, labelled), separator=",")
            for chunk in read_chunks(file, header=True):
                rows = parse(chunk, form)
                if labelled:
                    click = rows.frame["click"]
                    rows = rows.reject(~click.is_in([0, 1]).fill_null(False), quoting(click, "click is not 0 or 1"))
                yield _checked_hour(rows)

    def _times(self) -> np.ndarray:
        """int32 [rows], the hour of every good row."""
        hours = [rows.frame["hour"].cast(pl.Int32).to_numpy() for rows in self._rows()]
        return np.concatenate(hours) if hours else np.zeros(0, np.int32)


def _columns(file: Path, labelled: bool) -> dict[str, Any]:
    header: Sequence[str] = read_header(file).split(",")
    needed = _NEEDED if labelled else _NEEDED[1:]
    missing = [c for c in needed if c not in header]
    if missing:
        raise UserError(f"{file} line 1: no column {missing[0]!r}; a header with {', '.join(needed)} is expected")
    if len(set(header)) != len(header):
        raise UserError(f"{file} line 1: a column name occurs twice")
    numbers = ("click", "hour") if labelled else ("hour",)
    return {name: pl.Int64 if name in numbers else pl.String for name in header}


def _checked_hour(rows: Rows) -> Rows:
    hour = rows.frame["hour"]
    wrong = _date(hour).is_null() | ~(hour % 100).is_between(0, 23).fill_null(False)
    return rows.reject(wrong, quoting(hour, "hour is not YYMMDDHH"))


def _date(hour: pl.Series) -> pl.Series:
    days = pl.DataFrame({"hour": hour}).select(day=pl.col("hour") // 100)
    distinct = days.unique().with_columns(
        date=(pl.col("day") + 20_000_000).cast(pl.String).str.to_date("%Y%m%d", strict=False)
    )
    return days.join(distinct, on="day", how="left", maintain_order="left")["date"]


def _calendar() -> list[pl.Expr]:
    date = (pl.col("hour") // 100 + 20_000_000).cast(pl.String).str.to_date("%Y%m%d")
    weekday = date.dt.weekday().cast(pl.Int64)
    return [
        (pl.col("hour") % 100).alias("hour_of_day"),
        weekday.alias("weekday"),
        (weekday >= 6).cast(pl.Int64).alias("is_weekend"),
    ]
