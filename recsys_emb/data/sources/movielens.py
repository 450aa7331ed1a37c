"""MovieLens-1M as click data, by AutoInt's protocol: above 3 stars is a click, below 3 is none, 3 is dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import Field

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
from recsys_emb.data.sources.base import Block, Note, RawFields, Rejected, Source, SourceOptions, random_split, register
from recsys_emb.errors import UserError
from recsys_emb.files import one_line

BLOCK_ROWS = 1 << 18

_INTEGERS = ("user_id", "item_id", "age", "occupation")
_USERS = ("user_id", "gender", "age", "occupation", "zip")


class MovieLensOptions(SourceOptions):
    """Options of ``movielens-1m``."""

    ratios: Ratios = Field((0.8, 0.1, 0.1), description="relative sizes of train, valid and test")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of the random split")


@register("movielens-1m")
class MovieLens(Source):
    """The folder that GroupLens publishes, or the same columns as ``ratings.parquet`` and ``users.csv``.

    ``movies.dat``, when there, adds the release year and the genres of each item. Each row goes to a split at random
    by seed, 8:1:1 ("AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks", CIKM 2019,
    section 5.1).
    """

    summary = "MovieLens-1M ratings as clicks (above 3 yes, below 3 no): folder with ratings.dat and users.dat"
    Options = MovieLensOptions
    options: MovieLensOptions

    def __init__(self, path: Path | None, options: SourceOptions) -> None:
        super().__init__(path, options)
        self._folder = folder = Path(path or ".")
        if (folder / "ratings.dat").is_file():
            self._ratings, self._users = folder / "ratings.dat", folder / "users.dat"
        elif (folder / "ratings.parquet").is_file():
            self._ratings, self._users = folder / "ratings.parquet", folder / "users.csv"
        else:
            raise UserError(
                f"--input {folder}: no ratings.dat or ratings.parquet there; give the folder unpacked from ml-1m.zip"
            )
        if not self._users.is_file():
            raise UserError(f"--input {folder}: {self._users.name} is missing beside {self._ratings.name}")
        # Only the published ratings number items as movies.dat does.
        self._movies = folder / "movies.dat"
        self._has_movies = self._ratings.suffix == ".dat" and self._movies.is_file()
        self._notes: list[Note] = []

    def fields(self) -> RawFields:
        names = [*_USERS, "item_id", *(["year"] if self._has_movies else [])]
        fields = [CategoricalField(name=n, vocabulary=n) for n in names]
        if self._has_movies:
            fields.append(CategoricalField(name="genres", vocabulary="genres", multi_valued=True))
        return RawFields(categorical=tuple(fields), user="user_id")

    def files(self) -> list[Path]:
        return [self._ratings, self._users, *([self._movies] if self._has_movies else [])]

    def blocks(self) -> Iterator[Block]:
        return self._blocks(drop=3)

    def inputs(self) -> Iterator[Block]:
        """Every rating, also those of 3 stars."""
        return self._blocks(drop=None)

    def _blocks(self, drop: int | None) -> Iterator[Block]:
        rejected: list[Rejected] = []
        rows = drop_bad(self._read_ratings(), self._ratings, rejected)
        rows = rows if drop is None else rows.filter(pl.col("rating") != drop)
        if rows.is_empty():
            first = f"; line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
            raise UserError(f"{self._ratings}: no rating above or below 3{first}")
        users = drop_bad(check_unique(self._read_users(), "user_id"), self._users, rejected)
        self._notes = []
        self._notes += missing_note(rows, users, "user_id", self._users)
        rows = rows.join(users, on="user_id", how="left", maintain_order="left")
        if self._has_movies:
            movies = drop_bad(check_unique(_read_movies(self._movies), "item_id"), self._movies, rejected)
            self._notes += missing_note(rows, movies, "item_id", self._movies)
            rows = rows.join(movies, on="item_id", how="left", maintain_order="left")
            rows = rows.with_columns(pl.col("genres").fill_null([]))
        labels = (rows["rating"] > 3).to_numpy().astype(np.uint8)
        split = random_split(0, len(rows), self.options.ratios, self.options.seed)
        frame = rows.select(f.name for f in self.fields().categorical)
        for start in range(0, len(frame), BLOCK_ROWS):
            part = slice(start, start + BLOCK_ROWS)
            yield Block(frame[part], labels[part], split[part], rejected=rejected if start == 0 else [])

    def notes(self) -> list[Note]:
        return self._notes

    def _read_ratings(self) -> pl.DataFrame:
        if self._ratings.suffix == ".dat":
            rows = read_dat(self._ratings, (*RATING, "timestamp"))
        else:
            try:
                rows = named(pl.read_parquet(self._ratings), RATING, self._ratings)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise UserError(f"{self._ratings}: not a readable Parquet file ({one_line(error)})") from None
        return rated(typed(rows, _INTEGERS))

    def _read_users(self) -> pl.DataFrame:
        if self._users.suffix == ".dat":
            return typed(read_dat(self._users, _USERS), _INTEGERS)
        try:
            table = pl.read_csv(self._users, infer_schema=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{self._users}: not a readable CSV file ({one_line(error)})") from None
        return typed(named(table, _USERS, self._users), _INTEGERS)


def _read_movies(path: Path) -> pl.DataFrame:
    """``item_id``, ``year`` of release from the end of the title, ``genres``."""
    rows = typed(read_dat(path, ("item_id", "title", "genres")), _INTEGERS)
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)
    return rows.with_columns(year=year, genres=pl.col("genres").str.split("|")).drop("title")
