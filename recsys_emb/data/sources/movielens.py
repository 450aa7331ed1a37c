"""MovieLens-1M as click data, by AutoInt's protocol: above 3 stars is a click, below 3 is none, 3 is dropped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from pydantic import Field

from recsys_emb.data.column_types import check_type
from recsys_emb.data.schema import CategoricalField
from recsys_emb.data.sources._fields import Ratios
from recsys_emb.data.sources._files import read_chunks
from recsys_emb.data.sources.base import Block, Note, RawFields, Rejected, Source, SourceOptions, random_split, register
from recsys_emb.data.values import canonical
from recsys_emb.errors import UserError

BLOCK_ROWS = 1 << 18

_RATINGS = ("user_id", "item_id", "rating")
_USERS = ("user_id", "gender", "age", "occupation", "zip")
_INTEGERS = ("user_id", "item_id", "age", "occupation")


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
        rows = _drop_bad(self._read_ratings(), self._ratings, rejected)
        rows = rows if drop is None else rows.filter(pl.col("rating") != drop)
        if rows.is_empty():
            first = f"; line {rejected[0].line}: {rejected[0].reason}" if rejected else ""
            raise UserError(f"{self._ratings}: no rating above or below 3{first}")
        users = _drop_bad(_check_unique(self._read_users(), "user_id"), self._users, rejected)
        self._notes = []
        self._note_missing(rows, users, "user_id", self._users)
        rows = rows.join(users, on="user_id", how="left", maintain_order="left")
        if self._has_movies:
            movies = _drop_bad(_check_unique(_read_movies(self._movies), "item_id"), self._movies, rejected)
            self._note_missing(rows, movies, "item_id", self._movies)
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

    def _note_missing(self, ratings: pl.DataFrame, others: pl.DataFrame, key: str, file: Path) -> None:
        missing = ~ratings[key].is_in(others[key].implode())
        if missing.any():
            what = f"ratings have no {', '.join(c for c in others.columns if c != key)}: no {key} like theirs in {file}"
            self._notes.append(Note(int(missing.sum()), len(ratings), what))

    def _read_ratings(self) -> pl.DataFrame:
        if self._ratings.suffix == ".dat":
            rows = _read_dat(self._ratings, (*_RATINGS, "timestamp"))
        else:
            try:
                rows = _named(pl.read_parquet(self._ratings), _RATINGS, self._ratings)
            except (pl.exceptions.PolarsError, OSError) as error:
                raise UserError(f"{self._ratings}: not a readable Parquet file ({_one_line(error)})") from None
        rating = pl.col("rating").cast(pl.Float32, strict=False)
        return _typed(rows).with_columns(
            rating=rating, reason=_reason(~rating.is_between(1, 5).fill_null(False), "rating", "not between 1 and 5")
        )

    def _read_users(self) -> pl.DataFrame:
        if self._users.suffix == ".dat":
            return _typed(_read_dat(self._users, _USERS))
        try:
            table = pl.read_csv(self._users, infer_schema=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise UserError(f"{self._users}: not a readable CSV file ({_one_line(error)})") from None
        return _typed(_named(table, _USERS, self._users))


def _read_dat(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """The lines of a ``::``-separated latin-1 file: ``columns`` as String, ``line``, ``text`` and ``reason``.

    ``reason`` says what is wrong with a line and is null for a good one; blank lines are left out.
    """
    lines = b"".join(c.text for c in read_chunks(path)).decode("latin-1").split("\n")
    frame = pl.DataFrame({"text": pl.Series(lines, dtype=pl.String).str.strip_chars_end("\r")})
    frame = frame.with_row_index("line", offset=1).filter(pl.col("text") != "")
    parts = pl.col("text").str.split("::")
    values = [parts.list.get(i, null_on_oob=True).alias(c) for i, c in enumerate(columns)]
    found = parts.list.len()
    wrong = pl.format("{} values separated by '::', expected {}", found, pl.lit(len(columns)))
    return frame.with_columns(*values, reason=pl.when(found != len(columns)).then(wrong))


def _named(table: pl.DataFrame, columns: Sequence[str], path: Path) -> pl.DataFrame:
    """``columns`` of a table with named columns, in the form that ``_read_dat`` gives."""
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


def _reason(wrong: pl.Expr, column: str, what: str) -> pl.Expr:
    """``reason`` where a row was good so far and ``wrong`` holds; ``column`` is quoted in it."""
    value = pl.col(column).cast(pl.String).fill_null("")
    return pl.coalesce("reason", pl.when(wrong).then(pl.format("{} '{}' is {}", pl.lit(column), value, pl.lit(what))))


def _typed(rows: pl.DataFrame) -> pl.DataFrame:
    """Integer columns as Int64, with a ``reason`` where a value is no integer."""
    for column in (c for c in _INTEGERS if c in rows.columns):
        number = pl.col(column).cast(pl.Int64, strict=False)
        rows = rows.with_columns(number.alias(column), reason=_reason(number.is_null(), column, "not an integer"))
    return rows


def _check_unique(rows: pl.DataFrame, key: str) -> pl.DataFrame:
    """A second line of one user or movie gets a ``reason``: joining it would double ratings."""
    again = pl.col("reason").is_null() & ~pl.struct(key, pl.col("reason").is_null()).is_first_distinct()
    return rows.with_columns(reason=_reason(again, key, "there already"))


def _read_movies(path: Path) -> pl.DataFrame:
    """``item_id``, ``year`` of release from the end of the title, ``genres``."""
    rows = _typed(_read_dat(path, ("item_id", "title", "genres")))
    year = pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int32)
    return rows.with_columns(year=year, genres=pl.col("genres").str.split("|")).drop("title")


def _drop_bad(rows: pl.DataFrame, path: Path, rejected: list[Rejected]) -> pl.DataFrame:
    """The good rows without the bookkeeping columns; the others are added to ``rejected``."""
    bad = rows.filter(pl.col("reason").is_not_null())
    rejected += [Rejected(path.name, *row) for row in bad.select("line", "reason", "text").iter_rows()]
    return rows.filter(pl.col("reason").is_null()).drop("line", "reason", "text")


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
