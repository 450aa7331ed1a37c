"""Schemas that are proposed for tables of all kinds: what each column becomes, and that `data prepare` takes them."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from recsys_emb.data.encode import prepare
from recsys_emb.data.guess.write import guess
from recsys_emb.data.options import make_source
from recsys_emb.errors import UserError

ROWS = 600
START = datetime.datetime(2026, 10, 1, 8)


def rows(**more: Callable[[int, random.Random], Any]) -> pl.DataFrame:
    """Users, items and a label that depends on neither; ``more`` columns of the row's number and a generator."""
    columns: dict[str, Callable[[int, random.Random], Any]] = {
        "clicked": lambda i, draw: int(draw.random() < 0.3),
        "user_id": lambda i, draw: f"u{draw.randrange(60)}",
        "item": lambda i, draw: f"SKU-{draw.randrange(80)}",
        **more,
    }
    made = {}
    for name, value in columns.items():
        draw = random.Random(name)
        made[name] = [value(i, draw) for i in range(ROWS)]
    return pl.DataFrame(made, strict=False)


def guessed(folder: Path, frame: pl.DataFrame, separator: str = ",", prepared: bool = True) -> tuple[dict, str]:
    """The proposal for a text file, which `data prepare` must take, and its text."""
    path = folder / "t.csv"
    frame.write_csv(path, separator=separator)
    return proposed(folder, path, prepared)


def proposed(folder: Path, path: Path, prepared: bool = True) -> tuple[dict, str]:
    text = guess(path)
    (folder / "schema.yaml").write_text(text)
    if prepared:
        manifest = prepare(make_source("table", path, folder / "schema.yaml"), folder / "out", overwrite=True)
        assert manifest["rejected"] == 0
        assert sum(manifest["rows"].values()) == ROWS
        assert not manifest["notes"]
    return yaml.safe_load(text), text


def test_a_plain_table(tmp_path: Path) -> None:
    schema, text = guessed(tmp_path, rows())
    assert schema == {
        "label": "clicked",
        "categorical": ["user_id", "item"],
        "user": "user_id",
        "split": {"ratios": [0.8, 0.1, 0.1], "seed": 1},
    }
    assert text.startswith(f"# Guessed from all 600 rows of {tmp_path / 't.csv'}:")
    assert "- user_id  # 60 values" in text


@pytest.mark.parametrize(
    ("no", "yes", "label"),
    [
        ("0", "1", "clicked"),
        ("false", "true", "clicked"),
        ("False", "True", "clicked"),
        ("N", "Y", {"column": "clicked", "positive": "Y", "negative": "N"}),
        ("no", "yes", {"column": "clicked", "positive": "yes", "negative": "no"}),
        ("-1", "1", {"column": "clicked", "positive": 1, "negative": -1}),
        ("view", "purchase", {"column": "clicked", "positive": "purchase", "negative": "view"}),
        ("left", "right", {"column": "clicked", "positive": "right", "negative": "left"}),  # the rarer one
    ],
)
def test_labels(tmp_path: Path, no: str, yes: str, label: Any) -> None:
    frame = rows()
    frame = frame.with_columns(clicked=pl.when(frame["clicked"] == 1).then(pl.lit(yes)).otherwise(pl.lit(no)))
    schema, text = guessed(tmp_path, frame)
    assert schema["label"] == label
    rate = (frame["clicked"] == yes).mean()
    assert f"in {rate:.1%} of the rows" in text
    counted = prepare(make_source("table", tmp_path / "t.csv", tmp_path / "schema.yaml"), tmp_path / "o")
    clicks = sum(counted["click_rate"][s] * counted["rows"][s] for s in counted["rows"])
    assert round(clicks) == (frame["clicked"] == yes).sum()
    assert ("the rarer one" in text) == (yes == "right")


def test_a_name_tells_the_label_among_columns_of_two_values(tmp_path: Path) -> None:
    frame = rows(is_mobile=lambda i, draw: draw.randrange(2)).rename({"clicked": "converted"})
    schema, _ = guessed(tmp_path, frame.select("is_mobile", "user_id", "converted", "item"))
    assert schema["label"] == "converted"
    assert "is_mobile" in schema["categorical"]
    schema, text = guessed(tmp_path, frame.rename({"converted": "flag"}).select("is_mobile", "user_id", "item", "flag"))
    assert "no name says what was clicked, is it this, or" in text


def test_a_rating_is_a_label_with_a_threshold(tmp_path: Path) -> None:
    schema, _ = guessed(tmp_path, rows(rating=lambda i, draw: draw.randint(1, 5)).drop("clicked"))
    assert (schema["label"], schema["label_threshold"]) == ("rating", 3)


def test_numbers(tmp_path: Path) -> None:
    schema, text = guessed(
        tmp_path,
        rows(
            price=lambda i, draw: None if draw.random() < 0.1 else round(draw.lognormvariate(3, 2), 2),
            temperature=lambda i, draw: draw.gauss(0, 9),
            hour=lambda i, draw: draw.randrange(24),
            shop_id=lambda i, draw: draw.randrange(100),
            visits=lambda i, draw: draw.randrange(300),
            advertiser=lambda i, draw: draw.randrange(100) * 98_765 + 100_000,
            zone=lambda i, draw: f"{draw.randrange(70):03}",
            age=lambda i, draw: draw.randrange(18, 60),
        ),
    )
    assert schema["dense"] == [{"name": "price", "transform": "log1p"}, "temperature", "visits", "age"]
    assert schema["categorical"] == ["user_id", "item", "hour", "shop_id", "advertiser", "zone"]
    assert "% missing, skewed" in text
    assert "- zone  # 70 values; digits with zeros in front" in text


TAGS = [[], ["a"], ["b", "c"], ["a", "c", "d"], ["e"], ["a", "e"], ["b", "d"], ["c"]]


@pytest.mark.parametrize(
    ("written", "separator"),
    [
        ("|".join, "|"),
        (";".join, ";"),
        (",".join, ","),
        ("::".join, "::"),
        (str, None),
        (lambda tags: str(tags).replace("'", '"'), None),
        (lambda tags: f"[{' '.join(map(repr, tags))}]", None),
        (lambda tags: f"[{', '.join(str(ord(t)) for t in tags)}]", None),
    ],
)
def test_lists(tmp_path: Path, written: Callable[[list[str]], str], separator: str | None) -> None:
    schema, text = guessed(tmp_path, rows(tags=lambda i, draw: written(draw.choice(TAGS))))
    assert schema["multi_valued"] == ["tags" if separator is None else {"name": "tags", "separator": separator}]
    assert "0 to 3 a row, 5 values" in text


@pytest.mark.parametrize("written", [str, " ".join, lambda items: items])
def test_sequences_find_their_target(tmp_path: Path, written: Callable[[list[str]], Any]) -> None:
    def last(i: int, draw: random.Random) -> list[str]:
        return [f"SKU-{draw.randrange(80)}" for _ in range(draw.randrange(6))]

    frame = rows(last_items=lambda i, draw: written(last(i, draw)))
    frame = frame.with_columns(shop=frame["item"].str.replace("SKU-.*?(.)$", "shop $1"))
    if frame["last_items"].dtype == pl.String:
        schema, text = guessed(tmp_path, frame)
    else:
        frame = frame.with_columns(
            last_shops=pl.col("last_items").list.eval(pl.element().str.replace("SKU-.*?(.)$", "shop $1"))
        )
        frame.write_parquet(tmp_path / "t.parquet")
        schema, text = proposed(tmp_path, tmp_path / "t.parquet")
        assert schema["sequences"][1] == {"name": "last_shops", "target": "shop", "aligned_with": "last_items"}
    separator = {"separator": " "} if written == " ".join else {}
    assert schema["sequences"][0] == {"name": "last_items", "target": "item", **separator}
    assert "100.0% of them values of item" in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (lambda t: f"{t:%Y-%m-%dT%H:%M:%SZ}", {}),
        (lambda t: f"{t:%Y-%m-%d %H:%M}", {}),
        (lambda t: f"{t:%m/%d/%Y %H:%M}", {"time_format": "%m/%d/%Y %H:%M"}),
        (lambda t: f"{t:%d.%m.%Y %H:%M}", {"time_format": "%d.%m.%Y %H:%M"}),
        (lambda t: f"{t:%d/%m/%Y}", {"time_format": "%d/%m/%Y"}),
        (lambda t: int(t.timestamp()), {}),
        (lambda t: int(t.timestamp() * 1000), {}),
        (lambda t: int(f"{t:%Y%m%d}"), {}),
    ],
)
def test_times(tmp_path: Path, value: Callable[[datetime.datetime], Any], expected: dict[str, str]) -> None:
    frame = rows(ts=lambda i, draw: value(START + datetime.timedelta(hours=i)))
    schema, text = guessed(tmp_path, frame.sample(fraction=1, shuffle=True, seed=1))
    assert schema["split"] == {"time": "ts", **expected}
    assert "dense" not in schema
    if "20261001" in text:
        assert "YYYYMMDD, 20261001 to 20261026" in text


def test_columns_that_are_left_out_say_why(tmp_path: Path) -> None:
    def days(i: int, draw: random.Random) -> str:
        return f"2026-11-{1 + i // 30:02}"

    frame = rows(
        request=lambda i, draw: f"{draw.getrandbits(64):x}",
        line=lambda i, draw: i,
        currency=lambda i, draw: "EUR",
        nothing=lambda i, draw: None,
        day=days,
        seen_at=lambda i, draw: START + datetime.timedelta(minutes=i),
        review=lambda i, draw: f"A shoe that I would buy again, for my {draw.randrange(500)} friends",
        amount=lambda i, draw: f"{draw.randrange(90)},5",
    )
    clicked = frame["clicked"] == 1
    frame = frame.with_columns(
        paid=pl.when(clicked).then(pl.lit("2026-01-01")),  # known for clicks alone
        dwell=pl.when(clicked).then(pl.int_range(100, 700)).otherwise(pl.int_range(0, 600) // 30),
        landing=pl.when(clicked).then(pl.lit("shop")).otherwise(pl.lit("list")),
    )
    schema, text = guessed(tmp_path, frame)
    assert schema["categorical"] == ["user_id", "item"]
    assert not {"dense", "multi_valued", "sequences"} & schema.keys()
    assert schema["split"] == {"time": "seen_at"}
    for line in (
        *("request: a value of its own in every row", "line: a value of its own in every row"),
        *(
            "currency: always EUR",
            "nothing: no values",
            "review: free text",
            "day: ISO times, 2026-11-01 to 2026-11-20",
        ),
        *("amount: numbers with a decimal comma", "paid: alone predicts the label, AUC 1.000"),
        *("dwell: alone predicts the label, AUC 1.000", "landing: alone predicts the label, AUC 1.000"),
    ):
        assert f"#   {line}" in text


def test_ids_with_weights_and_texts_for_missing(tmp_path: Path) -> None:
    def weighed(i: int, draw: random.Random) -> str:
        return "|".join(f"{tag}:{draw.random():.2f}" for tag in draw.sample("abcdefgh", draw.randrange(1, 4)))

    frame = rows(
        topics=weighed,
        price=lambda i, draw: draw.choice(["NA", "?", "1.5", "22.25", "7"]),
        city=lambda i, draw: draw.choice(["NULL", "Rome", "NA"]),
    )
    schema, text = guessed(tmp_path, frame, prepared=False)
    assert schema["multi_valued"] == [{"name": "topics", "separator": "|"}]
    assert "id:weight, but weights are not read" in text
    assert schema["null_values"] == ["?", "NA", "NULL"]
    assert schema["dense"] == ["price"]
    source = make_source("table", tmp_path / "t.csv", tmp_path / "schema.yaml")
    (note,) = prepare(source, tmp_path / "out")["notes"]
    assert "id:weight" in note["what"]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_separators_of_the_file(tmp_path: Path, separator: str) -> None:
    schema, _ = guessed(tmp_path, rows(title=lambda i, draw: draw.choice(["a, b", "c"])), separator)
    assert schema["separator"] == separator


def test_names_that_need_another(tmp_path: Path) -> None:
    frame = rows().rename({"item": "item id", "user_id": "User ID"}).with_columns(pl.col("item id").alias("item_id"))
    schema, _ = guessed(tmp_path, frame.rename({"clicked": "Clicked?"}))
    assert schema["categorical"][:2] == [
        {"name": "User_ID", "column": "User ID"},
        {"name": "item_id", "column": "item id"},
    ]
    assert (schema["label"], schema["user"]) == ("Clicked?", "User_ID")
    assert schema["categorical"][2] == {"name": "item_id_", "column": "item_id"}


def test_splits_weights_and_parquet(tmp_path: Path) -> None:
    frame = rows(
        part=lambda i, draw: ("train", "valid", "test")[min(i // 400 + i % 2 * (i > 500), 2)],
        weight=lambda i, draw: draw.random(),
        when=lambda i, draw: START,
        facts=lambda i, draw: {"a": 1},
        flag=lambda i, draw: draw.random() < 0.5,
        tags=lambda i, draw: draw.choice(TAGS),
    )
    frame = frame.with_columns(pl.col("item").cast(pl.Categorical))
    frame.write_parquet(tmp_path / "t.parquet")
    schema, text = proposed(tmp_path, tmp_path / "t.parquet")
    assert schema["split"] == {"column": "part"}
    assert schema["weight"] == "weight"
    assert schema["categorical"] == ["user_id", "item", "flag"]
    assert schema["multi_valued"] == ["tags"]
    assert "#   facts: struct<" in text


def test_folders_that_name_a_column(tmp_path: Path) -> None:
    """Rows of some of the files, so that a column of the folders' names is seen to vary."""
    frame = rows()
    for day in range(12):
        folder = tmp_path / "log" / f"day=2026-11-{day + 1:02}"
        folder.mkdir(parents=True)
        frame[day * 50 : day * 50 + 50].write_csv(folder / "part-0.csv")
    schema, text = proposed(tmp_path, tmp_path / "log")
    assert schema["split"] == {"time": "day"}
    assert text.startswith("# Guessed from 400 rows of")
    assert "2026-11-01 to 2026-11-12" in text


def test_what_cannot_be_guessed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for text, message in (
        (
            "a,b\n" + "".join(f"{i},{i}\n" for i in range(9)),
            "no column of two values that could be the label; .*'a', 'b'",
        ),
        ("y,x\n" + "".join(f"{i % 2},{i / 7}\n" for i in range(99)), "no column of ids or categories"),
        ("a,b\n", "no rows to guess from"),
        ("", "the file is empty"),
        ("1,,\n2,,\n", "line 1: 2 columns have no name; the first line must name the columns"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message) as error:
            guess(path)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no such file"):
        guess(tmp_path / "nowhere.csv")


def test_lines_that_are_no_rows_are_mentioned(tmp_path: Path) -> None:
    rows().write_csv(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", "a") as file:
        file.write("1,2\n")
    _, text = proposed(tmp_path, tmp_path / "t.csv", prepared=False)
    assert "# Lines that are no rows of this table: 1;" in text
