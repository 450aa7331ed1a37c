"""MovieLens-100k as click data in the order of time: above 3 stars is a click, below 3 is none, 3 is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field, model_validator

from recsys_emb.data.schema import CategoricalField
from recsys_emb.data.sources._fields import Ratios
from recsys_emb.data.sources._movielens_tables import (
    RATING,
    check_unique,
    drop_bad,
    missing_note,
    named,
    rated,
    read_dat,
    typed,
)
from recsys_emb.data.sources._splits import RandomSplit, TimeSplit
from recsys_emb.data.sources.base import Block, Note, RawFields, Rejected, Source, SourceOptions, register
from recsys_emb.errors import UserError
from recsys_emb.files import one_line

DAY = 86_400
_GENRES = (
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)
"""In the order of the columns of u.item."""
_RATINGS = (*RATING, "timestamp")
_USERS = ("user_id", "age", "gender", "occupation", "zip")
_ITEMS = ("item_id", "title", "date", "video", "url", *_GENRES)
_INTEGERS = ("user_id", "item_id", "age", "timestamp")

Day = Annotated[int, Field(ge=0)]


class MovieLens100kOptions(SourceOptions):
    """Options of ``movielens-100k``."""

    split: Literal["time", "random"] = Field("time", description="train, valid, test in the order of time, or by seed")
    ratios: Ratios = Field((0.8, 0.1, 0.1), description="relative sizes of train, valid and test")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of the random split")
    days: tuple[Day, Day] | None = Field(
        None, description="only the ratings of these days, first and last; day 0 is that of the first rating (UTC)"
    )

    @model_validator(mode="after")
    def _in_order(self) -> MovieLens100kOptions:
        if self.days is not None and self.days[0] > self.days[1]:
            raise ValueError(f"days: {self.days[0]} comes after {self.days[1]}")
        return self


@register("movielens-100k")
class MovieLens100k(Source):
    """The folder that GroupLens publishes, or ``ratings.parquet``, ``users.csv`` and ``items.csv`` of the same columns.

    Rows come in the order of time, with the user's attributes, the item's genres and year of release, and the hour and
    the weekday (1: Monday) of the rating, UTC.
    """

    name = "movielens-100k"
    summary = "MovieLens-100k ratings as clicks (above 3 yes, below 3 no) in the order of time: folder with u.data"
    Options = MovieLens100kOptions
    options: MovieLens100kOptions

    def __init__(self, path: Path | None, options: SourceOptions) -> None:
        super().__init__(path, options)
        folder = Path(path or ".")
        for names in (("u.data", "u.user", "u.item"), ("ratings.parquet", "users.csv", "items.csv")):
            if (folder / names[0]).is_file():
                self._ratings, self._users, self._items = (folder / name for name in names)
                break
        else:
            raise UserError(
                f"--input {folder}: no u.data or ratings.parquet there; give the folder unpacked from ml-100k.zip"
            )
        for file in (self._users, self._items):
            if not file.is_file():
                raise UserError(f"--input {folder}: {file.name} is missing beside {self._ratings.name}")
        self._notes: list[Note] = []

    def fields(self) -> RawFields:
        names = [*_USERS, "item_id", "year", "hour", "weekday"]
        fields = [CategoricalField(name=n, vocabulary=n) for n in names]
        fields.append(CategoricalField(name="genres", vocabulary="genres", multi_valued=True))
        return RawFields(categorical=tuple(fields), user="user_id")

    def files(self) -> list[Path]:
        return [self._ratings, self._users, self._items]

    def blocks(self) -> Iterator[Block]:
        return self._blocks(drop=3, days=self.options.days)

    def inputs(self) -> Iterator[Block]:
        """Every rating, also those of 3 stars and of other days."""
        return self._blocks(drop=None, days=None)

    def notes(self) -> list[Note]:
        return self._notes

    def _blocks(self, drop: int | None, days: tuple[Day, Day] | None) -> Iterator[Block]:
        rejected: list[Rejected] = []
        rows = drop_bad(self._read_ratings(), self._ratings, rejected).sort("timestamp", maintain_order=True)
        day = pl.col("timestamp") // DAY
        first, last = days or (0, 2**31)
        rows = rows.filter((day - day.min()).is_between(first, last))
        rows = rows if drop is None else rows.filter(pl.col("rating") != drop)
        if rows.is_empty():
            what = f"; line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
            raise UserError(f"{self._ratings}: no rating above or below 3 on the days asked for{what}")
        users = drop_bad(check_unique(self._read_users(), "user_id"), self._users, rejected)
        items = drop_bad(check_unique(self._read_items(), "item_id"), self._items, rejected)
        self._notes = [
            *missing_note(rows, users, "user_id", self._users),
            *missing_note(rows, items, "item_id", self._items),
        ]
        for others, key in ((users, "user_id"), (items, "item_id")):
            rows = rows.join(others, on=key, how="left", maintain_order="left")
        time = pl.from_epoch("timestamp", time_unit="s")
        rows = rows.with_columns(pl.col("genres").fill_null([]), hour=time.dt.hour(), weekday=time.dt.weekday())
        labels = (rows["rating"] > 3).to_numpy().astype(np.uint8)
        frame = rows.select(f.name for f in self.fields().categorical)
        yield Block(frame, labels, self._split(rows["timestamp"].to_numpy()), rejected=rejected)

    def _split(self, times: np.ndarray) -> np.ndarray:
        o = self.options
        if o.split == "random":
            return RandomSplit(o.ratios, o.seed).codes(len(times))
        return TimeSplit(times, o.ratios).codes(times)

    def _read_ratings(self) -> pl.DataFrame:
        if self._ratings.suffix == ".data":
            return rated(typed(read_dat(self._ratings, _RATINGS, "\t"), _INTEGERS))
        try:
            table = pl.read_parquet(self._ratings)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{self._ratings}: not a readable Parquet file ({one_line(error)})") from None
        return rated(typed(named(table, _RATINGS, self._ratings), _INTEGERS))

    def _read_users(self) -> pl.DataFrame:
        if self._users.suffix == ".user":
            return typed(read_dat(self._users, _USERS, "|"), _INTEGERS)
        return typed(named(_read_csv(self._users), _USERS, self._users), _INTEGERS)

    def _read_items(self) -> pl.DataFrame:
        """``item_id``, ``year`` (null where it is not known), ``genres``."""
        if self._items.suffix == ".item":
            rows = typed(read_dat(self._items, _ITEMS, "|"), _INTEGERS)
            flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES]
            genres, year = pl.concat_list(flags).list.drop_nulls(), pl.col("title").str.extract(r"\((\d{4})\)\s*$")
        else:
            table = named(_read_csv(self._items), ("item_id", "year", "genres"), self._items)
            rows = typed(table, _INTEGERS)
            written = pl.col("genres").cast(pl.String)
            genres = pl.when(written != "").then(written.str.split("|"))
            year = pl.col("year").cast(pl.String).str.extract(r"^(\d{4})$")
        return rows.select("item_id", "line", "text", "reason", genres=genres, year=year.cast(pl.Int32))


def _read_csv(path: Path) -> pl.DataFrame:
    try:
        return pl.read_csv(path, infer_schema=False)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{path}: not a readable CSV file ({one_line(error)})") from None
