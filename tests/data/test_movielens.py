"""The movielens-1m source on hand-made files of the published format, against row-by-row loops."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys_emb.data.sources.base import TEST, TRAIN, VALID, source_registry
from recsys_emb.errors import UserError

MovieLens = source_registry.get("movielens-1m")

RATINGS = [(1, 10, 5), (1, 11, 3), (2, 10, 2), (2, 12, 4), (3, 11, 1)]
USERS = [(1, "F", 1, 10, "48067"), (2, "M", 56, 16, "70072-1234")]  # no user 3
MOVIES = [(10, "Café au Lait, The (1995)", "Drama|Comedy"), (11, "No year", "Action")]  # no movie 12


def _lines(rows: list[tuple]) -> str:
    return "".join("::".join(map(str, row)) + "\n" for row in rows)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "ratings.dat").write_text(_lines([(*r, 978300760) for r in RATINGS]), encoding="latin-1")
    (tmp_path / "users.dat").write_text(_lines(USERS), encoding="latin-1")
    (tmp_path / "movies.dat").write_text(_lines(MOVIES), encoding="latin-1")
    return tmp_path


def _read(path: Path, **options: object):
    source = MovieLens(path, MovieLens.Options.model_validate(options))
    blocks = list(source.blocks())
    frame = pl.concat([b.frame for b in blocks])
    labels, split = (np.concatenate([getattr(b, part) for b in blocks]) for part in ("labels", "split"))
    return source, frame, labels, split, [r for b in blocks for r in b.rejected]


def test_published_files(published: Path) -> None:
    source, frame, labels, _, rejected = _read(published)
    assert frame.rows() == [
        (1, "F", 1, 10, "48067", 10, 1995, ["Drama", "Comedy"]),
        (2, "M", 56, 16, "70072-1234", 10, 1995, ["Drama", "Comedy"]),
        (2, "M", 56, 16, "70072-1234", 12, None, []),
        (3, None, None, None, None, 11, None, ["Action"]),
    ]
    assert labels.tolist() == [1, 0, 1, 0]
    assert labels.dtype == np.uint8
    assert rejected == []
    fields = source.fields()
    assert [f.name for f in fields.categorical] == frame.columns
    assert [f.name for f in fields.categorical if f.multi_valued] == ["genres"]
    assert fields.user == "user_id"


def test_ratings_without_a_user_or_a_movie_are_counted(published: Path) -> None:
    """Of four ratings that are no 3, one is of user 3 and one of movie 12."""
    source, *_ = _read(published)
    users, movies = published / "users.dat", published / "movies.dat"
    assert [str(note) for note in source.notes()] == [
        f"1 of 4 ratings have no gender, age, occupation, zip: no user_id like theirs in {users} (25.0%)",
        f"1 of 4 ratings have no genres, year: no item_id like theirs in {movies} (25.0%)",
    ]
    users.write_text(_lines(USERS[:1]), encoding="latin-1")  # cut short
    assert len(list(source.inputs())) == 1
    assert [(note.count, note.total) for note in source.notes()] == [(3, 5), (1, 5)]
    users.write_text(_lines([*USERS, (3, "F", 1, 1, "1")]), encoding="latin-1")
    movies.write_text(_lines([*MOVIES, (12, "x", "y")]), encoding="latin-1")
    assert len(list(source.blocks())) == 1
    assert source.notes() == []


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", [1.5] * 5, "column 'user_id': 1.5 is no id"),
        ("item_id", [[1]] * 5, "column 'item_id' is large_list<item: int64>; categorical takes"),
        ("rating", [{"stars": 1}] * 5, "column 'rating' is struct<stars: int64>; label takes"),
    ],
)
def test_a_parquet_column_of_a_type_that_is_not_taken(
    published: Path, tmp_path: Path, column: str, values: list, message: str
) -> None:
    ratings = pl.DataFrame(RATINGS, schema=["user_id", "item_id", "rating"], orient="row")
    (published / "ratings.dat").unlink()
    ratings.with_columns(pl.Series(column, values)).write_parquet(published / "ratings.parquet")
    pl.DataFrame(USERS, schema=["user_id", "gender", "age", "occupation", "zip"], orient="row").write_csv(
        published / "users.csv"
    )
    with pytest.raises(UserError, match=f"ratings.parquet: {message}"):
        _read(published)


def test_parquet_and_csv_give_the_same_rows(published: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pl.DataFrame(RATINGS, schema=["user_id", "item_id", "rating"], orient="row").write_parquet(
        other / "ratings.parquet"
    )
    (other / "users.csv").write_text("user_id,gender,age,occupation,zip\n1,F,1,10,48067\n2,M,56,16,70072-1234\n")
    (other / "movies.dat").write_text("10::ignored: items are renumbered here (1999)::X\n")
    _, expected, labels, split, _ = _read(published)
    _, frame, labels2, split2, _ = _read(other)
    assert frame.equals(expected.drop("year", "genres"))
    assert (labels == labels2).all()
    assert (split == split2).all()


def test_bad_lines_are_rejected_with_their_numbers(published: Path) -> None:
    with open(published / "ratings.dat", "a") as file:
        file.write("\nx::10::5::1\n2::10::6::1\n2::10::5\n2::10::4::1::9\r\n3::10::4::1\r\n")
    with open(published / "users.dat", "a") as file:
        file.write("2::F::1::1::00000\nnonsense\n3::F::old::1::00000\n")
    _, frame, _, _, rejected = _read(published)
    assert [(r.file, r.line) for r in rejected] == [
        *(("ratings.dat", n) for n in (7, 8, 9, 10)),
        *(("users.dat", n) for n in (3, 4, 5)),
    ]
    reasons = " ".join(r.reason for r in rejected)
    for part in ("user_id 'x' is not an integer", "rating '6'", "3 values", "5 values", "there already", "age 'old'"):
        assert part in reasons
    assert rejected[0].text == "x::10::5::1"
    assert frame.rows()[-1][:2] == (3, None)
    assert len(frame) == 5


def test_split_is_random_by_seed(tmp_path: Path) -> None:
    rows = [(u, i, 5 if (u + i) % 2 else 1, 0) for u in range(1, 101) for i in range(1, 101)]
    (tmp_path / "ratings.dat").write_text(_lines(rows))
    (tmp_path / "users.dat").write_text(_lines(USERS))
    _, _, labels, split, _ = _read(tmp_path)
    assert [np.count_nonzero(split == s) for s in (TRAIN, VALID, TEST)] == pytest.approx([8000, 1000, 1000], abs=150)
    assert abs(np.corrcoef(labels, split)[0, 1]) < 0.05
    assert (_read(tmp_path)[3] == split).all()
    assert (_read(tmp_path, seed=2)[3] != split).mean() > 0.2
    thirds = _read(tmp_path, ratios="1,1,1")[3]
    assert np.bincount(thirds) / len(thirds) == pytest.approx([1 / 3] * 3, abs=0.03)


def _remove(name: str):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove("ratings.dat"), "no ratings.dat or ratings.parquet"),
        (_remove("users.dat"), "users.dat is missing"),
        (lambda f: (f / "ratings.dat").write_text(""), "no rating above or below 3"),
        (lambda f: (f / "ratings.dat").write_text("a,b\n"), "line 1: 1 values separated by '::', expected 4"),
    ],
)
def test_mistakes_are_one_line(published: Path, damage, message: str) -> None:
    damage(published)
    with pytest.raises(UserError, match=message) as error:
        _read(published)
    assert "\n" not in str(error.value)


def test_missing_column_and_damaged_parquet(tmp_path: Path) -> None:
    ratings = pl.DataFrame({"user_id": [1], "item_id": [1], "stars": [5]})
    ratings.write_parquet(tmp_path / "ratings.parquet")
    (tmp_path / "users.csv").write_text("user_id,gender,age,occupation,zip\n")
    with pytest.raises(UserError, match=r"no column 'rating'; it has user_id, item_id, stars$"):
        _read(tmp_path)
    ratings.rename({"stars": "rating"}).write_parquet(tmp_path / "ratings.parquet")
    (tmp_path / "users.csv").write_text("user_id,gender,age\n1,F,1\n")
    with pytest.raises(UserError, match=r"no column 'occupation'"):
        _read(tmp_path)
    (tmp_path / "ratings.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(UserError, match=r"^[^\n]*not a readable Parquet file[^\n]*$"):
        _read(tmp_path)


@pytest.mark.skipif("RECSYS_EMB_DATA" not in os.environ, reason="RECSYS_EMB_DATA is not set")
def test_real_ratings_become_the_rows_of_ctr_parquet() -> None:
    folder = Path(os.environ["RECSYS_EMB_DATA"]) / "ml-1m"
    _, frame, labels, split, rejected = _read(folder)
    assert rejected == []
    assert np.bincount(split) / len(split) == pytest.approx([0.8, 0.1, 0.1], abs=0.002)
    expected = pl.read_parquet(folder / "ctr.parquet").drop("split")
    expected = expected.cast({c: pl.Int64 for c, t in expected.schema.items() if t.is_integer()})
    ours = frame.with_columns(label=pl.Series(labels.astype(np.int64))).select(expected.columns)
    keys = ["user_id", "item_id"]
    assert ours.sort(keys).equals(expected.sort(keys))
