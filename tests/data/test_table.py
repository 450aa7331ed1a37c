"""Tables by a schema: CSV with quotes, TSV, Parquet; every role of a column; every mistake."""

from __future__ import annotations

import csv
import datetime
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.data.sources import _files
from recsys_emb.data.sources.base import Block
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError

SCHEMAS = Path(__file__).parents[2] / "datasets"
SCHEMA: dict[str, Any] = {
    "label": "clicked",
    "dense": ["price", {"name": "log_views", "column": "views", "transform": "log1p"}],
    "categorical": ["user", {"name": "item", "vocabulary": "items"}],
    "multi_valued": [{"name": "tags", "separator": "|"}],
    "sequences": [
        {"name": "history", "target": "item", "max_length": 2, "separator": " "},
        {"name": "twin", "target": "item", "max_length": 2, "separator": " ", "aligned_with": "history"},
    ],
    "weight": "weight",
    "user": "user",
}
HEADER = ["clicked", "price", "views", "user", "item", "tags", "history", "twin", "weight", "unused"]
ROW = ["1", "2.5", "10", "u1", "007", "a|b", "1 2 3", "4 5 6", "0.5", "x"]


def changed(**values: str) -> list[str]:
    return [values.get(name, value) for name, value in zip(HEADER, ROW)]


def write(path: Path, rows: list[list[str]], delimiter: str = ",", header: list[str] = HEADER) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return path


def read(path: Path, schema: dict[str, Any] | None = None) -> list[Block]:
    return list(make_source("table", path, options=schema or SCHEMA).blocks())


def test_roles(tmp_path: Path) -> None:
    other = changed(clicked="0", price="", tags="", history="", twin="", user="", item="7")
    (block,) = read(write(tmp_path / "t.csv", [ROW, other]))
    assert block.labels.tolist() == [1, 0]
    assert block.weights is not None
    assert block.weights.tolist() == [0.5, 0.5]
    frame = block.frame
    assert frame.columns == ["price", "log_views", "user", "item", "tags", "history", "twin"]
    assert frame["price"].to_list() == [2.5, None]
    assert frame["log_views"].to_list() == [10.0, 10.0]
    assert frame["user"].to_list() == ["u1", None]
    assert frame["item"].to_list() == ["007", "7"]
    assert frame["tags"].to_list() == [["a", "b"], None]
    assert frame["history"].to_list() == [["1", "2", "3"], None]
    fields = make_source("table", tmp_path / "t.csv", options=SCHEMA).fields()
    assert [f.vocabulary for f in fields.sequences] == ["items", "items"]
    assert (fields.user, fields.weighted) == ("user", True)


def test_quotes_hold_separators_and_line_ends(tmp_path: Path) -> None:
    names = ['Smith, "Joe"', "two\nlines", "plain", "tab\there"]
    rows = [changed(user=n, price=str(i)) for i, n in enumerate(names)]
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        (block,) = read(write(tmp_path / f"t{suffix}", rows, delimiter))
        assert block.frame["user"].to_list() == names
    rows[2][1] = "cheap"
    (block,) = read(write(tmp_path / "t.csv", rows))
    assert block.frame["user"].to_list() == [names[0], names[1], names[3]]
    assert [(r.line, r.reason) for r in block.rejected] == [(5, "price is not a number: 'cheap'")]


def test_a_quote_that_is_never_closed_costs_one_line(tmp_path: Path) -> None:
    rows = [changed(price=str(i)) for i in range(6)]
    path = write(tmp_path / "t.csv", rows)
    lines = path.read_text().split("\n")
    lines[3] = lines[3].replace("u1", '"u1')
    path.write_text("\n".join(lines))
    blocks = read(path)
    assert [v for b in blocks for v in b.frame["price"].to_list()] == [0, 1, 3, 4, 5]
    assert [(r.line, r.text) for b in blocks for r in b.rejected] == [(4, lines[3])]


@pytest.mark.parametrize(
    ("user", "good", "bad"),
    [
        (b'"u1', [2, 4], [3]),  # at the end of the file: the columns are right, the value is not
        (b'"u\n\xff1"', [2, 5], [3, 4]),  # a line inside the quotes is not UTF-8
        (b'"u"1"x"', [2, 4], [3]),  # polars: u1x
        (b"u\r1", [2, 4], [3]),
        (b'u"1"', [2, 3, 4], []),  # a quote inside a value is a character
        (b'"u\r\n1"', [2, 3, 5], []),
    ],
)
def test_broken_quotes_make_no_wrong_row(tmp_path: Path, user: bytes, good: list[int], bad: list[int]) -> None:
    path = tmp_path / "t.csv"
    options = {"label": "y", "categorical": ["user"], "split": {"ratios": [1, 1, 1]}}
    path.write_bytes(b"y,user\n1,a\n0," + user + b"\n1,b\n")
    blocks = list(make_source("table", path, options=options).inputs())
    assert sorted(n for b in blocks for n in b.lines) == good
    assert sorted(r.line for b in blocks for r in b.rejected) == bad
    read = [v for b in blocks for v in b.frame["user"]]
    assert sorted(read) == sorted(["a", "b", *([user.decode().replace('"u\r\n1"', "u\r\n1")] if not bad else [])])


@pytest.mark.parametrize("value", [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"x^2"], ids=["gzip", "zstd", "zlib"])
def test_rows_that_begin_as_compressed_files_do(tmp_path: Path, value: bytes) -> None:
    path = tmp_path / "t.csv"
    options = {"label": "y", "categorical": ["user"], "split": {"ratios": [1, 1, 1]}}
    path.write_bytes(b"user,y\n" + value + b",1\nb,0\n")
    (block,) = make_source("table", path, options=options).inputs()
    good = value == b"x^2"
    assert block.frame["user"].to_list() == (["x^2", "b"] if good else ["b"])
    assert [r.line for r in block.rejected] == ([] if good else [2])


@pytest.mark.parametrize("header", [b"y,\rus er,x", b'""y,u,x', b'y,u,"x'])
def test_a_header_that_is_none(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(header + b"\n1,2,3\n")
    options = {"label": "y", "categorical": ["x"], "split": {"ratios": [1, 1, 1]}}
    source = make_source("table", tmp_path / "t.csv", options=options)
    with pytest.raises(UserError, match=r"t\.csv line 1: no header of column names"):
        list(source.blocks())


def test_small_chunks_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    users = [draw.choice(["a", "b,c", "d\ne", 'f"g']) for _ in range(300)]
    rows = [changed(user=u, price="x" if i in (5, 200) else str(i)) for i, u in enumerate(users)]
    path = write(tmp_path / "t.csv", rows)
    (whole,) = read(path)
    original = _files.read_chunks
    monkeypatch.setattr(
        "recsys_emb.data.sources.table.read_chunks", lambda file, **options: original(file, size=700, **options)
    )
    pieces = read(path)
    assert len(pieces) > 10
    assert pl.concat(b.frame for b in pieces).equals(whole.frame)
    assert [r for b in pieces for r in b.rejected] == whole.rejected
    assert [u for i, u in enumerate(users) if i not in (5, 200)] == whole.frame["user"].to_list()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (changed(clicked="2"), "label is not 0 or 1: '2'"),
        (changed(clicked="maybe"), "label is not 0 or 1: 'maybe'"),
        (changed(clicked=""), "label is not 0 or 1: ''"),
        (changed(price="1,5"), "price is not a number: '1,5'"),
        (changed(views="inf"), "log_views is not a number: 'inf'"),
        (changed(weight="-1"), "weight is missing or negative: '-1.0'"),
        (changed(weight=""), "weight is missing or negative: ''"),
        (changed(weight="1e39"), "weight is too large: '1e+39'"),
        (changed(twin="1"), "twin and history differ in length"),
        (ROW[:-1], "9 columns, expected 10"),
        ([*ROW, "y"], "11 columns, expected 10"),
    ],
)
def test_a_malformed_line_is_rejected_by_its_number(tmp_path: Path, bad: list[str], reason: str) -> None:
    (block,) = read(write(tmp_path / "t.csv", [ROW, bad, ROW]))
    assert len(block.labels) == 2
    assert [(r.file, r.line, r.reason) for r in block.rejected] == [("t.csv", 3, reason)]


def test_null_values_and_separator(tmp_path: Path) -> None:
    rows = [changed(price="NULL", user="-"), changed(user="NULL")]
    path = write(tmp_path / "t.csv", rows, ";")
    (block,) = read(path, {**SCHEMA, "separator": ";", "null_values": ["NULL", "-"]})
    assert block.frame["price"].to_list() == [None, 2.5]
    assert block.frame["user"].to_list() == [None, None]
    (tmp_path / "bad.csv").write_text(path.read_text() + "broken\n")  # the careful reader agrees
    (block,) = read(tmp_path / "bad.csv", {**SCHEMA, "separator": ";", "null_values": ["NULL", "-"]})
    assert block.frame["price"].to_list() == [None, 2.5]
    assert block.frame["user"].to_list() == [None, None]


def test_one_column_may_be_numeric_and_categorical(tmp_path: Path) -> None:
    schema = {"label": "clicked", "dense": ["price"], "categorical": [{"name": "price_id", "column": "price"}]}
    (block,) = read(write(tmp_path / "t.csv", [changed(price="1.50"), changed(price="x")]), schema)
    assert block.frame["price"].to_list() == [1.5]
    assert block.frame["price_id"].to_list() == ["1.50"]
    assert [r.line for r in block.rejected] == [3]


def test_label_threshold(tmp_path: Path) -> None:
    rows = [changed(clicked=v) for v in ("1", "3", "3.5", "5", "")]
    (block,) = read(write(tmp_path / "t.csv", rows), {**SCHEMA, "label_threshold": 3})
    assert block.labels.tolist() == [0, 0, 1, 1]
    assert [(r.line, r.reason) for r in block.rejected] == [(6, "label is missing")]
    (block,) = read(write(tmp_path / "u.csv", [*rows, changed(clicked="good")]), {**SCHEMA, "label_threshold": 3})
    assert next((r.line, r.reason) for r in block.rejected) == (7, "label is not a number: 'good'")


@pytest.mark.parametrize(
    ("label", "clicks", "others", "wrong"),
    [
        ("clicked", ["1", "1.0", "true", "TRUE", " 1"], ["0", "0.00", "false", "False"], ["Y", "2", "-1", ""]),
        ({"column": "clicked", "positive": "Y"}, ["Y"], ["N", "y", "0"], [""]),
        ({"column": "clicked", "positive": "Y", "negative": ["N", "-"]}, ["Y"], ["N", "-"], ["y", "0", ""]),
        ({"column": "clicked", "positive": 1, "negative": -1}, ["1", "+1", "1.0"], ["-1", "-1.0"], ["0", "true"]),
        ({"column": "clicked", "positive": [True, "buy"]}, ["yes", "True", "buy"], ["no", "Buy"], [""]),
    ],
)
def test_labels(tmp_path: Path, label: Any, clicks: list[str], others: list[str], wrong: list[str]) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SCHEMA, "label": label}))  # true may have been written yes
    path = write(tmp_path / "t.csv", [changed(clicked=v) for v in (*clicks, *others, *wrong)])
    (block,) = make_source("table", path, tmp_path / "s.yaml").blocks()
    assert block.labels.tolist() == [1] * len(clicks) + [0] * len(others)
    assert len(block.rejected) == len(wrong)


def test_labels_of_parquet(tmp_path: Path) -> None:
    for values in ([True, False], [1.0, 0.0], ["1", "false"], [1, 0]):
        frame = pl.DataFrame({"clicked": values, "user": ["a", "b"]})
        frame.write_parquet(tmp_path / "t.parquet")
        (block,) = read(tmp_path / "t.parquet", {"label": "clicked", "categorical": ["user"]})
        assert block.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ("YN", "`label: {column: clicked, positive: Y}` says which value is a click"),
        (["-1", "1"], "`label: {column: clicked, positive: 1}` says which value is a click"),
        (["5", "3", "2"], "`label_threshold: NUMBER` makes a click of every label above it"),
        (["view", "buy", "cart"], "`label: {column: clicked, positive: buy}` says which value is a click"),
    ],
)
def test_other_labels_are_refused_with_what_to_write(tmp_path: Path, values: list[str], remedy: str) -> None:
    path = write(tmp_path / "t.csv", [changed(clicked=v, user=u) for u in "abcdef" for v in values])
    with pytest.raises(UserError, match=f"label is not 0 or 1: '{values[0]}'") as error:
        prepare(make_source("table", path, options=SCHEMA), tmp_path / "out")
    assert str(error.value).endswith(f"; {remedy}")
    if "column" in remedy:  # and then they are
        label = yaml.safe_load(remedy.split("`")[1])
        (block,) = read(path, {**SCHEMA, **label})
        assert len(block.labels) == 6 * len(values)
        assert block.labels.sum() == 6


def test_a_label_has_one_meaning(tmp_path: Path) -> None:
    for label, message in (
        ({"column": "clicked", "positive": "Y", "negative": ["N", "Y"]}, "'Y' cannot be both positive and negative"),
        ({"column": "clicked", "negative": "N"}, "negative needs positive"),
        ({"positive": "N"}, "label.column: missing"),
    ):
        with pytest.raises(UserError, match=message):
            make_source("table", tmp_path, options={**SCHEMA, "label": label})
    with pytest.raises(UserError, match=r"label\.positive or label_threshold, not both"):
        make_source(
            "table", tmp_path, options={**SCHEMA, "label": {"column": "c", "positive": 3}, "label_threshold": 2}
        )


def test_split_column(tmp_path: Path) -> None:
    rows = [changed(unused=v) for v in ("test", "train", "valid", "dev", "train")]
    (block,) = read(write(tmp_path / "t.csv", rows), {**SCHEMA, "split": {"column": "unused"}})
    assert block.split.tolist() == [2, 0, 1, 0]
    assert [(r.line, r.reason) for r in block.rejected] == [(5, "split is not train, valid, test: 'dev'")]


DAYS = [datetime.datetime(2026, 11, day, hour) for day in (1, 10, 11, 19, 20, 21) for hour in (0, 12)]


@pytest.mark.parametrize(
    ("written", "form"),
    [
        (lambda t: f"{t:%Y-%m-%d %H:%M}", {}),
        (lambda t: f"{t:%Y-%m-%dT%H:%M:%SZ}", {}),
        (lambda t: f"{t:%m/%d/%Y %H}:00", {"time_format": "%m/%d/%Y %H:%M"}),
        (lambda t: int(t.replace(tzinfo=datetime.UTC).timestamp()), {}),
        (lambda t: int(t.replace(tzinfo=datetime.UTC).timestamp()) * 1000, {}),
        (lambda t: int(t.replace(tzinfo=datetime.UTC).timestamp()) * 10**9, {}),
        (lambda t: t, {}),
    ],
)
@pytest.mark.parametrize("valid", ["2026-11-11", "2026-11-10 12:00", None])
def test_split_by_dates(tmp_path: Path, written: Any, form: dict[str, str], valid: str | None) -> None:
    """Test from the 20th on; valid from a time on, or the last third of the rows before."""
    frame = pl.DataFrame({"y": [1, 0] * 6, "u": ["a"] * 12, "at": [written(t) for t in DAYS]})
    if frame["at"].dtype == pl.Datetime:
        frame.write_parquet(tmp_path / "t")
    else:
        frame.write_csv(tmp_path / "t")
    begins = "" if valid is None else f"valid: {{from: {valid}}}, "
    split = f"{{time: at, {begins}test: {{from: 2026-11-20}}, ratios: [2, 1, 0]}}"
    (tmp_path / "s.yaml").write_text(f"label: y\ncategorical: [u]\nsplit: {split}\n")
    options = [f"split.{key}={value}" for key, value in form.items()]
    source = make_source("table", tmp_path / "t", tmp_path / "s.yaml", options)
    (block,) = source.blocks()
    first = {"2026-11-11": 4, "2026-11-10 12:00": 3, None: 5}[valid]
    assert block.split.tolist() == [0] * first + [1] * (8 - first) + [2] * 4
    dumped = source.options.model_dump(mode="json")
    assert dumped["split"]["test"] == {"from": "2026-11-20"}
    assert make_source("table", tmp_path / "t", options=dumped).options == source.options


def test_starts_as_numbers_and_days(tmp_path: Path) -> None:
    split = {"time": "price", "valid": {"from": 3}, "test": {"from": 4.5}}
    path = write(tmp_path / "t.csv", [changed(price=str(n)) for n in (5, 1, 3, 4, 2, 4.5)])
    (block,) = read(path, {**SCHEMA, "split": split})
    assert block.split.tolist() == [2, 0, 1, 1, 0, 2]
    path = write(tmp_path / "t.csv", [changed(unused=str(n)) for n in (20261119, 20261120, 20261121)])
    dates = {"time": "unused", "valid": {"from": 20261120}, "test": {"from": "2026-11-21"}}
    (block,) = read(path, {**SCHEMA, "split": dates})
    assert block.split.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"test": {"from": "2026-11-20"}}, r"test\.from is a time; name the column of times as time"),
        ({"time": "unused", "valid": {"from": 3}}, r"valid\.from needs test\.from, where valid ends"),
        ({"time": "unused", "test": {"form": 3}}, r"split\.test\.f"),
        ({"time": "unused", "test": {"from": "soon"}}, r"split\.test\.from: 'soon' is no time"),
        ({"time": "unused", "test": {"from": 7}}, r"test\.from: 7 is a number, column 'unused' is a time without"),
        ({"time": "price", "test": {"from": "2026-11-20"}}, r"'2026-11-20' is a time .*, column 'price' is a number"),
        (
            {"time": "unused", "valid": {"from": "2026-11-20"}, "test": {"from": "2026-11-20"}},
            r"split\.valid\.from: 2026-11-20 must lie before test\.from, 2026-11-20",
        ),
    ],
)
def test_starts_that_cannot_be(tmp_path: Path, split: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "t.csv", [changed(unused=f"2026-11-{d}") for d in (19, 20, 21)])
    with pytest.raises(UserError, match=message) as error:
        read(path, {**SCHEMA, "split": split})
    assert "\n" not in str(error.value)


def test_lines_count_alike_in_every_format(tmp_path: Path) -> None:
    """A table's header is line 1, so the first row is line 2."""
    frame = pl.DataFrame({"y": [1, 0, 5, 1], "u": ["a", "b", "c", "d"], "x": ["1", "2", "3", "a"]})
    frame.write_csv(tmp_path / "t.csv")
    frame.write_csv(tmp_path / "t.tsv", separator="\t")
    frame.write_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.tsv", "t.parquet"):
        source = make_source("table", tmp_path / name, options={"label": "y", "categorical": ["u"], "dense": ["x"]})
        (block,) = source.inputs()
        assert block.lines is not None
        assert block.lines.tolist() == [2, 3, 4]
        (block,) = source.labelled()
        assert block.lines is not None
        assert block.lines.tolist() == [2, 3]
        assert sorted((r.line, r.reason) for r in block.rejected) == [
            (4, "label is not 0 or 1: '5'"),
            (5, "x is not a number: 'a'"),
        ]


def test_a_dataset_is_named_as_its_file(tmp_path: Path) -> None:
    for path, name in (
        ("logs/clicks.csv", "clicks"),
        ("logs/clicks.csv.gz", "clicks"),
        ("logs/clicks", "clicks"),
        ("logs/2026/*.csv", "2026"),
        ("logs/day=*/part-?.parquet", "logs"),
        ("*.csv", "table"),
    ):
        assert make_source("table", Path(path), options=SCHEMA).dataset_name == name
    rows = [changed(clicked=str(i % 2)) for i in range(300)]
    source = make_source("table", write(tmp_path / "shop.csv", rows), options=SCHEMA)
    assert prepare(source, tmp_path / "out")["name"] == "shop"
    assert prepare(source, tmp_path / "named", name="mine")["name"] == "mine"


@pytest.mark.parametrize("kind", ["number", "date"])
def test_split_by_time(tmp_path: Path, kind: str) -> None:
    draw = random.Random(3)
    times = [draw.randrange(100, 130) for _ in range(100)]
    texts = [str(t) if kind == "number" else f"2020-01-{t - 99:02d} 10:00:00" for t in times]
    rows = [changed(unused=t) for t in [*texts, ""]]
    schema = {**SCHEMA, "split": {"time": "unused", "ratios": [6, 2, 2]}}
    (block,) = read(write(tmp_path / "t.csv", rows), schema)
    order = sorted(range(100), key=lambda i: (times[i], i))
    expected = np.zeros(100)
    expected[order[60:80]], expected[order[80:]] = 1, 2
    assert block.split.tolist() == expected.tolist()
    assert [r.line for r in block.rejected] == [102]


def test_parquet(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "clicked": [1, 0, 2, None, 1],
            "price": [1.5, None, 1.0, 1.0, float("nan")],
            "views": [1, 2, 3, 4, 5],
            "user": [5, 6, 7, 8, None],
            "item": [1, 2, 3, 4, 5],
            "tags": [["a"], [], None, ["b", "c"], ["a", None]],
            "history": [[1, 2], [], [3], [4], [5]],
            "twin": [[1, 2], [], [3], [4], [5]],
            "weight": [1.0] * 5,
            "day": [1, 2, 3, 4, 5],
        }
    )
    frame.write_parquet(tmp_path / "t.parquet")
    (block,) = read(tmp_path / "t.parquet")
    assert block.frame["user"].to_list() == [5, 6, None]
    assert block.frame["tags"].to_list() == [["a"], [], ["a", None]]
    assert block.frame["price"].to_list() == [1.5, None, None]
    assert [(r.line, r.reason) for r in block.rejected] == [
        (4, "label is not 0 or 1: '2'"),
        (5, "label is not 0 or 1: ''"),
    ]
    assert "'clicked': 2," in block.rejected[0].text
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "t.parquet").read_bytes()[:-50])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read(tmp_path / "cut.parquet")


def test_lists_as_they_are_printed(tmp_path: Path) -> None:
    """What pandas, JSON and numpy write, and what looks like it and is none."""
    lists = {
        "['a', 'b']": ["a", "b"],
        '["a","b, c"]': ["a", "b, c"],
        "[1, 2.0]": ["1", "2.0"],
        "[1 2\n 3]": ["1", "2", "3"],
        "['a' 'b']": ["a", "b"],
        "('a',)": ["a"],
        "[]": [],
        "[None, 'b', '']": [None, "b"],
        r"""["caf\u00e9", 'it\'s']""": ["café", "it's"],
        "[a|b]": ["a", "b"],
        " a | b ||": ["a", "b"],
        "'a'|\"b\"": ["a", "b"],
        "'90s|rock 'n' roll": ["'90s", "rock 'n' roll"],
        "|": [],
    }
    wrong = ["[red shirt, blue]", "[[1], [2]]", "['a', 'b", "'a','b'", '"a|b', "{'a': 1}"]
    rows = [changed(tags=text) for text in (*lists, *wrong)]
    (block,) = read(write(tmp_path / "t.csv", rows))
    assert block.frame["tags"].to_list() == list(lists.values())
    assert [r.reason for r in block.rejected] == [f"tags is no list: '{text}'" for text in wrong]
    assert block.rejected[0].line == 2 + len(lists) + 1  # a line end inside of quotes


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\t", "::", "$"])
def test_separators(tmp_path: Path, separator: str) -> None:
    schema = {**SCHEMA, "multi_valued": [{"name": "tags", "separator": separator}]}
    rows = [changed(tags=separator.join(tags)) for tags in ("ab", "a", ("a", "b", ""))]
    (block,) = read(write(tmp_path / "t.csv", rows), schema)
    assert block.frame["tags"].to_list() == [["a", "b"], ["a"], ["a", "b"]]


@pytest.mark.parametrize("text", [" a|b", "a|b ", "a |b", "a| b", "\ta|b\v"])
def test_space_around_items_is_no_part_of_them_whatever_the_other_rows_hold(tmp_path: Path, text: str) -> None:
    for others in ([], ["c | d"], ["c||d"]):
        rows = [changed(tags=value) for value in (text, *others)]
        (block,) = read(write(tmp_path / "t.csv", rows))
        assert block.frame["tags"].to_list() == [["a", "b"], *[["c", "d"]] * len(others)]


def test_brackets_need_no_separator(tmp_path: Path) -> None:
    schema = {**SCHEMA, "multi_valued": ["tags"]}
    (block,) = read(write(tmp_path / "t.csv", [changed(tags=t) for t in ("['a']", "", "[1, 2]")]), schema)
    assert block.frame["tags"].to_list() == [["a"], None, ["1", "2"]]
    with pytest.raises(UserError, match=r"'tags': separator is missing; t.csv line 3 holds 'a', which is no list"):
        read(write(tmp_path / "t.csv", [changed(tags=t) for t in ("['a']", "a")]), schema)


def test_gaps_of_aligned_sequences_keep_their_place(tmp_path: Path) -> None:
    """The second item has no category, and the separator at the end says nothing."""
    sequences = [{**s, "separator": "|", "max_length": 9} for s in SCHEMA["sequences"]]
    rows = [changed(history="1|2|3", twin=twin) for twin in ("4||6", "4||6|", "['4', '', '6']", "4|6")]
    (block,) = read(write(tmp_path / "t.csv", rows), {**SCHEMA, "sequences": sequences})
    assert block.frame["twin"].to_list() == [["4", None, "6"]] * 3
    assert [(r.line, r.reason) for r in block.rejected] == [(5, "twin and history differ in length")]


def test_history_keeps_its_last_entries(tmp_path: Path) -> None:
    rows = [changed(clicked=str(i % 2), unused=s) for i, s in enumerate(["train"] * 4 + ["valid"] * 2 + ["test"] * 2)]
    path = write(tmp_path / "t.csv", rows)
    prepare(make_source("table", path, options={**SCHEMA, "split": {"column": "unused"}}), tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    test = dataset.split("test")
    assert test.jagged["history"].offsets.tolist() == [0, 2, 4]
    values = pl.read_ipc(tmp_path / "out" / "vocabularies" / "items.arrow")["value"].to_list()
    assert [values[i - 1] for i in test.jagged["history"].values.tolist()] == ["2", "3", "2", "3"]
    assert [values[i - 1] for i in test.ids[:, 1].tolist()] == ["007", "007"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, "label: "),
        ({"lable": "x"}, "lable: unknown key .did you mean 'label'"),
        ({"user": "nobody"}, "user 'nobody' is not one of categorical: user, item"),
        ({"dense": ["user"]}, "field 'user' is given twice"),
        ({"sequences": [{"name": "h", "target": "tags"}]}, "'h': target 'tags' is not one of categorical"),
        ({"sequences": [{"name": "h", "target": "item", "aligned_with": "g"}]}, "aligned_with must name an earlier"),
        ({"sequences": [{"name": "h", "target": "item", "max_length": 0}]}, "max_length: .*got 0"),
        (
            {"sequences": [SCHEMA["sequences"][0], {**SCHEMA["sequences"][1], "max_length": 3}]},
            "'twin': max_length must be that of 'history'",
        ),
        ({"split": {"column": "a", "time": "b"}}, "split: .*column or time, not both"),
        ({"split": {"ratio": [1, 1, 1]}}, "ratio: unknown key"),
        ({"dense": ["clicked"]}, "field 'clicked' is read from 'clicked', the column of label; leave it out"),
        ({"sequences": [{"name": "h", "column": "clicked", "target": "item"}]}, "field 'h' is read from 'clicked'"),
        ({"split": {"column": "unused"}, "multi_valued": ["unused"]}, "'unused', the column of split.column"),
        ({"split": {"column": "clicked"}}, "column 'clicked' cannot be both label and split.column"),
        ({"weight": "day", "split": {"time": "day"}}, "column 'day' cannot be both weight and split.time"),
        ({"separator": "::"}, "separator: .*single ASCII character"),
        ({"categorical": ["a b"]}, "categorical.0.name: 'a b' is no name of a field.*write {name: a_b, column: 'a b'}"),
        ({"dense": [{"name": "x", "colum": "y"}]}, "dense.0.colum: .*mean 'column'.*allowed: name, column, transform$"),
        ({"user": "x"}, "schema.yaml: user 'x' is not one of"),
        (
            {"categorical": [], "multi_valued": [], "dense": [], "sequences": [], "user": None},
            "no field to embed: give categorical",
        ),
    ],
)
def test_mistakes_in_the_schema(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    schema = tmp_path / "schema.yaml"
    schema.write_text(yaml.safe_dump({**SCHEMA, **change}))
    with pytest.raises(UserError, match=message) as error:
        make_source("table", tmp_path, schema)
    assert "\n" not in str(error.value)
    assert "schema.yaml" in str(error.value)


def test_a_weight_and_a_time_may_be_fields(tmp_path: Path) -> None:
    schema = {**SCHEMA, "dense": ["weight", "views"], "split": {"time": "views"}}
    (block,) = read(write(tmp_path / "t.csv", [ROW]), schema)
    assert block.frame["weight"].to_list() == [0.5]


def test_schema_file_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"label: missing; describe the columns .* --schema FILE"):
        make_source("table", tmp_path)
    with pytest.raises(UserError, match="No such file"):
        make_source("table", tmp_path, tmp_path / "nowhere.yaml")
    (tmp_path / "bad.yaml").write_text("label: [1,\n")
    with pytest.raises(UserError, match=r"bad\.yaml line 2: not valid YAML"):
        make_source("table", tmp_path, tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- label\n")
    with pytest.raises(UserError, match="expected a mapping"):
        make_source("table", tmp_path, tmp_path / "list.yaml")


def test_options_go_before_the_schema(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump({**SCHEMA, "split": {"seed": 5}}))
    source = make_source("table", tmp_path, tmp_path / "s.yaml", ["split.seed=9", "label=other", "separator=;"])
    assert source.options.split.seed == 9
    assert (source.options.label.column, source.options.separator) == ("other", ";")
    again = make_source("table", tmp_path, options=source.options.model_dump(mode="json"))
    assert again.options == source.options


def test_columns_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [ROW])
    with pytest.raises(UserError, match=r"no column 'nothing', which field 'x' needs; it has 'clicked', 'price'"):
        read(path, {**SCHEMA, "dense": [{"name": "x", "column": "nothing"}]})
    with pytest.raises(UserError, match=r"no column 'when', which split\.time needs"):
        read(path, {**SCHEMA, "split": {"time": "when"}})
    with pytest.raises(UserError, match="'history': separator is missing"):
        read(path, {**SCHEMA, "sequences": [{"name": "history", "target": "item"}]})
    with pytest.raises(UserError, match="column 'clicked' occurs twice"):
        read(write(tmp_path / "u.csv", [ROW], header=["clicked", *HEADER[:-1]]))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(UserError, match="the file is empty"):
        read(tmp_path / "empty.csv")


def test_only_a_header_has_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [])
    with pytest.raises(UserError, match="no rows; check --input"):
        prepare(make_source("table", path, options=SCHEMA), tmp_path / "out")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\n\n\r\n"])
def test_blank_lines_at_the_end_are_no_rows(tmp_path: Path, end: bytes) -> None:
    path = write(tmp_path / "t.csv", [])
    path.write_bytes(path.read_bytes() + end)
    assert not any(len(b.frame) or b.rejected for b in read(path))
    path.write_bytes(write(path, [ROW]).read_bytes() + end)
    assert [(len(b.frame), b.rejected) for b in read(path)] == [(1, [])]
    path.write_bytes(b"\n".join([path.read_bytes().split(b"\n")[0], b"", ",".join(ROW).encode(), b""]))
    assert [(len(b.frame), [r.line for r in b.rejected]) for b in read(path)] == [(1, [2])]  # between rows they are


def test_real_movielens(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "ml-1m" / "ctr.parquet"
    prepare(make_source("table", path, SCHEMAS / "movielens-1m" / "ctr.yaml"), tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    frame = pl.read_parquet(path)
    assert dataset.manifest["rows"] == {"train": 591_540, "valid": 73_751, "test": 73_721}
    assert dataset.schema.user == "user_id"
    train = frame.filter(pl.col("split").cast(pl.String) == "train")
    order = train.group_by("item_id").len().sort(["len", "item_id"], descending=[True, False])
    ids = dict(zip(order["item_id"].to_list(), range(1, len(order) + 1)))
    for name in ("valid", "test"):
        rows = frame.filter(pl.col("split").cast(pl.String) == name)
        position = [f.name for f in dataset.schema.single_valued].index("item_id")
        assert dataset.split(name).ids[:, position].tolist() == [ids.get(v, 0) for v in rows["item_id"].to_list()]
        assert dataset.split(name).labels.tolist() == rows["label"].to_list()


def test_real_amazon(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "amazon-beauty" / "ctr.parquet"
    prepare(make_source("table", path, SCHEMAS / "amazon" / "ctr.yaml"), tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    assert dataset.manifest["rows"] == {"train": 262_826, "valid": 44_726, "test": 44_726}
    item, category = dataset.schema.sequences
    assert (item.vocabulary, category.vocabulary) == ("item_id", "category_id")
    assert (item.max_length, category.aligned_with) == (50, "item_history")
    values = pl.read_ipc(tmp_path / "out" / "vocabularies" / "item_id.arrow")["value"].to_list()
    rows = pl.read_parquet(path).filter(pl.col("split").cast(pl.String) == "valid").head(500)
    jagged = dataset.split("valid").jagged["item_history"]
    for i, history in enumerate(rows["item_history"].to_list()):
        stored = jagged.values[jagged.offsets[i] : jagged.offsets[i + 1]].tolist()
        assert [values[v - 1] for v in stored] == history
