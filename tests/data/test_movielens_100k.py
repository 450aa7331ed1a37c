"""The movielens-100k source on hand-made files of both formats, and on the real ratings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys_emb.data.append import append
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.data.sources.base import TEST, TRAIN, VALID, Block, Source, source_registry
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError

NOON = 874_724_400 // 86_400 * 86_400 + 12 * 3600  # of a Saturday: 1997-09-20
DAY = 86_400
RATINGS = [(2, 12, 4, NOON + DAY), (1, 10, 5, NOON), (1, 11, 3, NOON + 1), (3, 11, 1, NOON + 3 * DAY + 3600)]
USERS = [(1, 24, "M", "technician", "85711"), (2, 53, "F", "other", "T8H1N")]  # no user 3
ITEMS = [(10, "Café au Lait (1995)", ["Comedy", "Drama"]), (11, "unknown", []), (12, "GoldenEye (1995)", ["Action"])]
GENRES = [
    *("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"),
    *("Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]
EXPECTED = [
    (1, 24, "M", "technician", "85711", 10, 1995, 12, 6, ["Comedy", "Drama"]),
    (2, 53, "F", "other", "T8H1N", 12, 1995, 12, 7, ["Action"]),
    (3, None, None, None, None, 11, None, 13, 2, []),
]


def published(folder: Path) -> Path:
    """As GroupLens writes them."""
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    (folder / "u.user").write_text("".join("|".join(map(str, row)) + "\n" for row in USERS))
    items = [
        "|".join([str(item), title, "01-Jan-1995", "", "http://x", *(str(int(g in genres)) for g in GENRES)])
        for item, title, genres in ITEMS
    ]
    (folder / "u.item").write_text("".join(f"{line}\n" for line in items), encoding="latin-1")
    return folder


def tables(folder: Path) -> Path:
    """The same with named columns; a year that is none, and genres separated by a bar."""
    pl.DataFrame(RATINGS, ["user_id", "item_id", "rating", "timestamp"], orient="row").write_parquet(
        folder / "ratings.parquet"
    )
    pl.DataFrame(USERS, ["user_id", "age", "gender", "occupation", "zip"], orient="row").write_csv(folder / "users.csv")
    years = ["1995", "V", "1995"]
    items = [(item, title, year, "|".join(genres)) for (item, title, genres), year in zip(ITEMS, years)]
    pl.DataFrame(items, ["item_id", "title", "year", "genres"], orient="row").write_csv(folder / "items.csv")
    return folder


def source_of(folder: Path, **options: object) -> Source:
    source = source_registry.get("movielens-100k")
    return source(folder, source.Options.model_validate(options))


def only(source: Source) -> Block:
    (block,) = source.blocks()
    return block


@pytest.mark.parametrize("form", [published, tables])
def test_rows_in_the_order_of_time(tmp_path: Path, form) -> None:
    source = source_of(form(tmp_path))
    block = only(source)
    assert block.frame.rows() == EXPECTED
    assert block.labels.tolist() == [1, 1, 0]
    assert block.rejected == []
    assert [f.name for f in source.fields().categorical] == block.frame.columns
    assert [f.name for f in source.fields().categorical if f.multi_valued] == ["genres"]
    (note,) = source.notes()
    assert str(note).startswith("1 of 3 ratings have no age, gender, occupation, zip: no user_id like theirs in ")


def test_all_ratings_are_predicted(tmp_path: Path) -> None:
    (block,) = source_of(published(tmp_path), days=(0, 0)).inputs()
    assert block.frame["item_id"].to_list() == [10, 11, 12, 11]


@pytest.mark.parametrize(("days", "items"), [((0, 0), [10]), ((1, 2), [12]), ((1, 3), [12, 11])])
def test_days_are_counted_from_the_first_rating(tmp_path: Path, days: tuple[int, int], items: list[int]) -> None:
    assert only(source_of(published(tmp_path), days=days)).frame["item_id"].to_list() == items


def test_bad_lines_are_named(tmp_path: Path) -> None:
    published(tmp_path)
    with open(tmp_path / "u.data", "a") as file:
        file.write("1\t10\t9\t880000000\n1\t10\t5\n")
    with open(tmp_path / "u.user", "a") as file:
        file.write("2|30|M|other|1\n")
    block = only(source_of(tmp_path))
    assert [(r.file, r.line, r.reason) for r in block.rejected] == [
        ("u.data", 5, "rating '9' is not between 1 and 5"),
        ("u.data", 6, "3 values separated by '\t', expected 4"),
        ("u.user", 3, "user_id '2' is there already"),
    ]
    assert block.frame.rows() == EXPECTED


def test_what_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no u\.data or ratings\.parquet there"):
        source_of(tmp_path)
    published(tmp_path)
    with pytest.raises(UserError, match="no rating above or below 3 on the days asked for"):
        only(source_of(tmp_path, days=(2, 2)))
    with pytest.raises(ValueError, match="days: 3 comes after 2"):
        source_of(tmp_path, days=(3, 2))
    (tmp_path / "u.item").unlink()
    with pytest.raises(UserError, match=r"u\.item is missing beside u\.data"):
        source_of(tmp_path)


def test_the_real_ratings(real_data: Path, tmp_path: Path) -> None:
    """What the folder's description says: 100,000 ratings; of the last 30 % most are by users not seen before."""
    folder = real_data / "ml-100k"
    raw = pl.read_parquet(folder / "ratings.parquet")
    rows = raw.filter(pl.col("rating") != 3).sort("timestamp", maintain_order=True)
    block = only(source_of(folder, ratios=(0.7, 0.15, 0.15)))
    assert block.frame["user_id"].to_list() == rows["user_id"].to_list()
    assert block.labels.tolist() == (rows["rating"] > 3).cast(pl.Int64).to_list()
    assert (np.diff(block.split.astype(int)) >= 0).all()
    seen = set(block.frame.filter(pl.Series(block.split == TRAIN))["user_id"])
    later = block.frame.filter(pl.Series(np.isin(block.split, [VALID, TEST])))["user_id"].to_list()
    assert np.mean([user not in seen for user in later]) > 0.8
    random = only(source_of(folder, split="random"))
    assert np.bincount(random.split).tolist() == pytest.approx(
        [0.8 * len(rows), 0.1 * len(rows), 0.1 * len(rows)], rel=0.05
    )


def test_weeks_are_appended(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "ml-100k"
    prepare(make_source("movielens-100k", folder, options={"days": [0, 27]}), tmp_path / "ml")
    for week in (4, 5):
        made = append(tmp_path / "ml", folder, name=f"week-{week}", options=[f"days=[{7 * week}, {7 * week + 6}]"])
        assert made["rows"]["train"] == len(only(source_of(folder, days=(7 * week, 7 * week + 6))).frame)
    dataset = open_dataset(tmp_path / "ml", "base", "parts")
    shares = dataset.unknown_share("valid")
    assert shares is not None
    assert shares["user_id"] > 0.5
    assert shares["occupation"] < 0.05
