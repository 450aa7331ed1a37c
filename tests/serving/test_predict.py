"""Predictions of raw rows: the same as those of the encoded rows, in order, whatever is missing or malformed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys_emb import cli, load_artifact
from recsys_emb.data.encode import prepare
from recsys_emb.data.encoder import FEW
from recsys_emb.data.ids import Ids
from recsys_emb.data.options import make_source
from recsys_emb.data.sources import _files
from recsys_emb.data.sources.base import TEST
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.serving import predict_file, write_artifact
from recsys_emb.training.stage_runner import predict_split
from tests.serving.conftest import train_run

ROWS = 600


def criteo_lines(seed: int = 0, rows: int = ROWS) -> list[str]:
    """Made-up rows in Criteo's format, with missing values."""
    random = np.random.default_rng(seed)
    numbers = np.where(random.random((rows, 13)) < 0.1, "", random.integers(-2, 999, (rows, 13)).astype(str))
    values = [[f"{v:08x}" for v in row] for row in random.zipf(1.4, (rows, 26)).clip(max=999)]
    labels = random.integers(0, 2, rows)
    return ["\t".join([str(label), *n, *v]) for label, n, v in zip(labels, numbers, values)]


def write_lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def artifact_of(
    source: str,
    input: Path,
    folder: Path,
    options: dict[str, Any] | None = None,
    ids: Ids = "vocabulary",
    **embedding: Any,
) -> Path:
    prepare(make_source(source, input, options=options or {}), folder / "data", ids=ids)
    run = train_run(folder / "data", folder / "run", **embedding)
    write_artifact(run, folder / "artifact")
    return folder / "artifact"


def predicted(artifact: Path, input: Path, out: Path, **options: Any) -> pl.DataFrame:
    predict_file(load_artifact(artifact), input, out, **options)
    return pl.read_parquet(out)


def encoded_test_logits(artifact: Path) -> np.ndarray:
    loaded = load_artifact(artifact)
    dataset = open_dataset(loaded.config.data.path)
    return predict_split(loaded.model, dataset, "test", loaded.config, "fp32").logits.numpy()


def is_test(artifact: Path, input: Path) -> np.ndarray:
    rows = load_artifact(artifact).manifest.rows
    blocks = make_source(rows.source, input, options=rows.options).blocks()
    return np.concatenate([b.split for b in blocks]) == TEST


@pytest.fixture(scope="module")
def criteo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("criteo")
    train = write_lines(folder / "train.txt", criteo_lines())
    return artifact_of("criteo", train, folder), train


def test_raw_rows_predict_what_encoded_rows_predict(criteo: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, train = criteo
    found = predicted(artifact, train, tmp_path / "p.parquet")
    assert found.schema == {"line": pl.Int64, "logit": pl.Float32, "probability": pl.Float32}
    assert found["line"].to_list() == list(range(1, ROWS + 1))
    logits = found["logit"].to_numpy()
    expected = encoded_test_logits(artifact)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(logits[is_test(artifact, train)], expected, atol=1e-6)
    np.testing.assert_allclose(found["probability"].to_numpy(), 1 / (1 + np.exp(-logits)), rtol=1e-5)


def test_labels_are_not_needed_and_not_looked_at(criteo: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, train = criteo
    expected = predicted(artifact, train, tmp_path / "p.parquet")
    cells = [line.split("\t") for line in criteo_lines()]
    bare = write_lines(tmp_path / "test.txt", ["\t".join(c[1:]) for c in cells])
    odd = write_lines(tmp_path / "odd.txt", ["\t".join(["?", *c[1:]]) for c in cells])
    for name, input in (("bare", bare), ("odd", odd)):
        assert predicted(artifact, input, tmp_path / f"{name}.parquet").equals(expected)


def test_batches_and_chunks_do_not_matter(
    criteo: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, train = criteo
    expected = predicted(artifact, train, tmp_path / "p.parquet")
    original = _files.read_chunks
    monkeypatch.setattr("recsys_emb.data.sources.criteo.read_chunks", lambda file, **o: original(file, size=5000, **o))
    calls: list[int] = []
    found = predicted(artifact, train, tmp_path / "q.parquet", batch_size=7, progress=calls.append)
    assert len(calls) > 10
    assert calls[-1] == ROWS
    assert found["line"].equals(expected["line"])
    np.testing.assert_allclose(found["logit"], expected["logit"], atol=1e-6)


def test_unseen_values_are_out_of_vocabulary(criteo: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = criteo
    cells = criteo_lines()[0].split("\t")
    lines = ["\t".join([*cells[:14], value, *cells[15:]]) for value in ("deadbeef", "0badcafe", "00000001")]
    logits = predicted(artifact, write_lines(tmp_path / "new.txt", lines), tmp_path / "p.parquet")["logit"]
    assert logits[0] == logits[1] != logits[2]
    frame = next(make_source("criteo", tmp_path / "new.txt").inputs()).frame
    assert load_artifact(artifact).encoder.encode(frame).ids[:, 0].tolist()[:2] == [0, 0]


def test_malformed_rows_are_listed_and_the_others_predicted(criteo: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, train = criteo
    expected = predicted(artifact, train, tmp_path / "whole.parquet")
    lines = criteo_lines()
    lines.insert(10, "broken")
    input = write_lines(tmp_path / "in.txt", lines)
    found = predicted(artifact, input, tmp_path / "p.parquet")
    assert found["line"].to_list() == [n for n in range(1, ROWS + 2) if n != 11]
    np.testing.assert_allclose(found["logit"], expected["logit"], atol=1e-6)
    rejected = (tmp_path / "p.parquet.rejected.tsv").read_text().splitlines()
    assert rejected[1:] == ["in.txt\t11\t1 columns, expected 40\tbroken"]
    assert {p.name for p in tmp_path.iterdir()} == {"whole.parquet", "in.txt", "p.parquet", "p.parquet.rejected.tsv"}


def test_too_many_malformed_rows(criteo: tuple[Path, Path], tmp_path: Path) -> None:
    input = write_lines(tmp_path / "in.txt", [*criteo_lines(), *["broken"] * 20])
    with pytest.raises(
        UserError, match=r"20 of 620 rows are malformed, more than --max-rejected 0.01: in.txt line 601"
    ):
        predict_file(load_artifact(criteo[0]), input, tmp_path / "p.parquet")
    assert {p.name for p in tmp_path.iterdir()} == {"in.txt", "p.parquet.rejected.tsv"}
    assert predict_file(load_artifact(criteo[0]), input, tmp_path / "p.parquet", max_rejected=0.1)["rejected"] == 20


def test_mistakes_in_one_line(criteo: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, train = load_artifact(criteo[0]), criteo[1]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "there.parquet").write_text("precious")
    for arguments, message in (
        ((None, tmp_path / "p"), "pass --input PATH"),
        ((tmp_path / "no.txt", tmp_path / "p"), "no such file"),
        ((tmp_path / "empty.txt", tmp_path / "p"), "the file is empty"),
        ((train, tmp_path / "there.parquet"), "exists already; name a new file"),
        ((train, tmp_path / "empty.txt/p"), "exists|cannot be written"),
        ((train, tmp_path / "p", 0), "--batch-size 0: must be 1 or more"),
    ):
        with pytest.raises(UserError, match=message) as error:
            predict_file(artifact, *arguments)
        assert "\n" not in str(error.value)
    assert (tmp_path / "there.parquet").read_text() == "precious"
    assert {p.name for p in tmp_path.iterdir()} == {"empty.txt", "there.parquet"}


# -- other sources ----------------------------------------------------------------------------------------------------


def test_movielens_keeps_every_rating(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    raw = tmp_path / "raw"
    raw.mkdir()
    ratings = [f"{u}::{i}::{r}::0" for u, i, r in zip(*(random.integers(1, n, 500) for n in (30, 40, 6)))]
    write_lines(raw / "ratings.dat", ratings)
    write_lines(raw / "users.dat", [f"{u}::F::25::{u % 7}::{u % 9}" for u in range(1, 30)])
    write_lines(
        raw / "movies.dat", [f"{i}::M ({1950 + i})::{'Drama|War' if i % 3 else 'Comedy'}" for i in range(1, 40)]
    )
    artifact = artifact_of("movielens-1m", raw, tmp_path)
    logits = predicted(artifact, raw, tmp_path / "p.parquet")["logit"].to_numpy()
    assert len(logits) == 500
    kept = np.array([line.split("::")[2] != "3" for line in ratings])
    np.testing.assert_allclose(logits[kept][is_test(artifact, raw)], encoded_test_logits(artifact), atol=1e-6)


TABLE = {
    "label": "clicked",
    "dense": [{"name": "price"}],
    "categorical": ["user", "item"],
    "multi_valued": [{"name": "tags", "separator": "|"}],
    "sequences": [{"name": "history", "target": "item", "separator": " "}],
    "split": {"column": "part"},
    "weight": "weight",
}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pl.DataFrame]:
    folder = tmp_path_factory.mktemp("table")
    random = np.random.default_rng(1)
    n = 500
    frame = pl.DataFrame(
        {
            "clicked": random.integers(0, 2, n),
            "user": [f"u{x}" for x in random.integers(0, 30, n)],
            "item": [f"i{x}" for x in random.integers(0, 40, n)],
            "price": random.normal(size=n),
            "tags": ["|".join(f"t{x}" for x in random.integers(0, 9, k)) for k in random.integers(0, 4, n)],
            "history": [" ".join(f"i{x}" for x in random.integers(0, 40, k)) for k in random.integers(0, 5, n)],
            "part": random.choice(["train", "valid", "test"], n),
            "weight": random.random(n),
        }
    )
    frame.write_csv(folder / "rows.csv")
    return artifact_of("table", folder / "rows.csv", folder, TABLE), frame


def test_a_table_needs_only_the_columns_of_its_fields(table: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    artifact, frame = table
    fields = ["price", "user", "item", "tags", "history"]
    frame.select(fields).write_csv(tmp_path / "bare.csv")
    frame.write_csv(tmp_path / "whole.csv")
    frame.with_columns(clicked=pl.lit("?"), part=pl.lit("?")).write_parquet(tmp_path / "odd.parquet")
    expected = predicted(artifact, tmp_path / "whole.csv", tmp_path / "p.parquet")["logit"]
    np.testing.assert_allclose(
        expected.to_numpy()[(frame["part"] == "test").to_numpy()], encoded_test_logits(artifact), atol=1e-6
    )
    for name in ("bare.csv", "odd.parquet"):
        np.testing.assert_allclose(
            predicted(artifact, tmp_path / name, tmp_path / f"{name}.out")["logit"], expected, atol=1e-6
        )
    frame.drop("item").write_csv(tmp_path / "less.csv")
    with pytest.raises(UserError, match="no column 'item', which field 'item' needs"):
        predict_file(load_artifact(artifact), tmp_path / "less.csv", tmp_path / "x.parquet")


def test_one_frame_from_python(table: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    artifact, frame = table
    frame.write_csv(tmp_path / "rows.csv")
    expected = predicted(artifact, tmp_path / "rows.csv", tmp_path / "p.parquet")["logit"].to_numpy()
    lists = frame.with_columns(pl.col("tags").str.split("|"), pl.col("history").str.split(" "))
    lists = lists.with_columns(
        pl.when(frame[c] == "").then(pl.lit([], pl.List(pl.String))).otherwise(pl.col(c)).alias(c)
        for c in ("tags", "history")
    )
    np.testing.assert_allclose(load_artifact(artifact).logits(lists[:3]), expected[:3], atol=1e-6)
    with pytest.raises(UserError, match="the rows have no field 'user'"):
        load_artifact(artifact).logits(lists.drop("user"))


def as_lists(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of ``table`` as a user would hand them over."""
    split = {"tags": "|", "history": " "}
    texts = [pl.when(pl.col(c) != "").then(pl.col(c).str.split(s)).alias(c) for c, s in split.items()]
    return frame.select("user", "item", "price", *texts)


def test_tables_of_every_library_are_one(table: tuple[Path, pl.DataFrame]) -> None:
    pandas = pytest.importorskip("pandas")
    artifact, frame = load_artifact(table[0]), as_lists(table[1][:20])
    expected = artifact.logits(frame)
    arrow = frame.to_arrow()
    stored = arrow.set_column(0, "user", arrow["user"].dictionary_encode())
    categories = pandas.DataFrame({c: frame[c].to_list() for c in frame.columns})
    categories["item"] = categories["item"].astype("category")
    for rows in (arrow, stored, stored.to_batches()[0], categories, frame.to_dict(), frame.to_dict(as_series=False)):
        np.testing.assert_array_equal(artifact.logits(rows), expected)


@pytest.mark.parametrize(
    "shared",
    [
        {"user": "u3"},
        {"user": None, "price": 2},
        {"user": "who?", "tags": ["t1", "t8", "new"], "price": None},
        {"history": ["i1", "i2", None], "price": "0.25"},
        {"history": [], "tags": None, "item": 7},
        {"user": True, "item": "i1", "price": float("nan")},
        {"user": 3, "item": 2**63, "price": 2**70},
        {"user": -1, "price": -0.5},
    ],
)
def test_values_that_all_rows_share_are_those_of_columns(
    table: tuple[Path, pl.DataFrame], shared: dict[str, Any]
) -> None:
    artifact, rows = load_artifact(table[0]), as_lists(table[1])[:40].to_dict(as_series=False)
    expected = artifact.logits({**rows, **{field: [value] * 40 for field, value in shared.items()}})
    candidates = {field: values for field, values in rows.items() if field not in shared}
    for form in (candidates, pl.DataFrame(candidates), pl.DataFrame(candidates).to_arrow()):
        np.testing.assert_array_equal(artifact.logits(form, shared={**shared, "no field": object()}), expected)


def test_shared_values_that_cannot_be_predicted(table: tuple[Path, pl.DataFrame]) -> None:
    artifact, rows = load_artifact(table[0]), as_lists(table[1])[:3]
    bare = rows.drop("price")
    for frame, shared, message in (
        (rows, {"price": 1.0}, "field 'price': both shared by all rows and a column of them"),
        (bare, {}, "the rows have no field 'price'"),
        (bare, {"price": float("inf")}, "field 'price': inf in row 0"),
        (bare, {"price": 1e300}, "field 'price': the number in row 0 .* is too large"),
        (bare, {"price": [1.0]}, "field 'price' is large_list"),
        (rows.drop("tags"), {"tags": 3}, "field 'tags' is int64; multi_valued takes lists"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            artifact.logits(frame, shared=shared)


def test_few_rows_and_many_are_encoded_alike(table: tuple[Path, pl.DataFrame]) -> None:
    """Of few values every one is looked up, of many those that differ."""
    encoder, rows = load_artifact(table[0]).encoder, as_lists(table[1])
    rows = rows.with_columns(user=pl.concat([pl.Series([None, "3.0", "3", "True"]), rows["user"][4:]]))
    many = encoder.encode(pl.concat([rows] * (FEW // len(rows) + 1)))
    few = encoder.encode(rows)
    assert torch.equal(many.ids[: len(rows)], few.ids)
    for name, jagged in few.jagged.items():
        assert torch.equal(many.jagged[name].values[: len(jagged.values)], jagged.values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"price": [float("inf")]}, r"field 'price': inf in row 0 \(from 0\) is not a finite number"),
        ({"price": [1e300]}, r"field 'price': the number in row 0 \(from 0\) is too large"),
        ({"price": ["cheap"]}, "field 'price': 'cheap' in row 0 .* is not a finite number"),
        ({"price": [[1.0]]}, "field 'price' is large_list<item: double>; dense takes boolean, integer, float"),
        ({"user": [{"id": 1}]}, "field 'user' is struct<id: int64>; categorical takes"),
        ({"user": [2.5]}, "field 'user': 2.5 is no id"),
        ({"user": [2.0**60]}, r"field 'user': .* is no id: from 2\^53 on several integers are one float64"),
        ({"user": [object()]}, "field 'user' is Object; categorical takes"),
        ({"tags": ["a|b"]}, "field 'tags' is large_string; multi_valued takes lists"),
        ({"history": [[["a"]]]}, "field 'history' is large_list<item: large_list<item: large_string>>; sequence takes"),
        ({"item": [1, "a"]}, "field 'item': the values make no column of one type"),
        ({"item": ["a", "b"]}, "the rows: the columns make no table"),
    ],
)
def test_rows_that_cannot_be_predicted(table: tuple[Path, pl.DataFrame], change: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"user": ["u1"], "item": ["i1"], "price": [1.0], "tags": [["t1"]], "history": [["i2"]]}
    artifact = load_artifact(table[0])
    assert np.isfinite(artifact.logits(good)).all()
    with pytest.raises(UserError, match=f"^{message}") as error:
        artifact.logits({**good, **change})
    assert "\n" not in str(error.value)
    for rows, what in (([1], "list"), ("x", "str")):
        with pytest.raises(UserError, match=f"the rows are a {what}; give a polars, pandas or Arrow table"):
            artifact.logits(rows)


def test_numbers_in_other_forms_are_the_same_numbers(table: tuple[Path, pl.DataFrame]) -> None:
    artifact, frame = load_artifact(table[0]), as_lists(table[1][:4]).with_columns(price=pl.Series([1, 0, None, 1]))
    expected = artifact.logits(frame)
    for price in (
        pl.Series([True, False, None, True]),
        pl.Series([" 1", "0.0", "NaN", "1e0"]),
        pl.Series([1.0, -0.0, float("nan"), 1.0]),
        pl.Series(["1", "0", None, "1"], dtype=pl.Categorical),
    ):
        np.testing.assert_array_equal(artifact.logits(frame.with_columns(price=price)), expected)


def test_aligned_sequences_of_unlike_lengths_are_refused(tmp_path: Path) -> None:
    """As prepare does: one row's categories would go to another's items."""
    rows = [f"{i % 2},i{i % 4},c{i % 2},i1 i2 i3,c1 c0 c1" for i in range(90)]
    (tmp_path / "t.csv").write_text("y,item,category,items,categories\n" + "\n".join(rows) + "\n")
    sequences = [
        {"name": "items", "target": "item", "separator": " ", "max_length": 2},
        {"name": "categories", "target": "category", "separator": " ", "max_length": 2, "aligned_with": "items"},
    ]
    schema = {"label": "y", "categorical": ["item", "category"], "sequences": sequences}
    artifact = load_artifact(artifact_of("table", tmp_path / "t.csv", tmp_path, schema))
    good = {
        "item": ["i1", "i1"],
        "category": ["c1", "c1"],
        "items": [["i1", "i2"], []],
        "categories": [["c1", "c0"], []],
    }
    assert len(artifact.logits(good)) == 2
    assert len(artifact.logits({**good, "categories": [["c1", "c0"], None]})) == 2
    for items, categories in (
        ([["i1", "i2", "i3"], ["i0"]], [["c1", "c0"], ["c0", "c1", "c0"]]),  # as many values in all
        ([["i1", "i2", "i3"], []], [["c1", "c0"], []]),  # as many that are kept
    ):
        with pytest.raises(UserError, match=r"'categories': rows differ in length from 'items', .* row 0 .*: 2 .* 3$"):
            artifact.logits({**good, "items": items, "categories": categories})


# -- values that training has not seen --------------------------------------------------------------------------------


def test_unknown_values_are_counted_by_field(table: tuple[Path, pl.DataFrame], tmp_path: Path) -> None:
    artifact, frame = table
    train = frame.filter(pl.col("part") == "train")
    new = frame.with_columns(
        user=pl.lit("somebody"), item=pl.when(pl.col("price") > 0).then(pl.lit("?")).otherwise("item")
    )
    new.write_csv(tmp_path / "new.csv")
    done = predict_file(load_artifact(artifact), tmp_path / "new.csv", tmp_path / "p.parquet")
    share = done["unknown_share"]
    known = set(train["item"]) | {v for row in train["history"] for v in row.split(" ")}
    assert share["user"] == 1
    assert share["item"] == pytest.approx(sum(v not in known for v in new["item"]) / len(new))
    assert share["tags"] == 0
    assert done["notes"] == []


def test_avazu_without_clicks(tmp_path: Path) -> None:
    from recsys_emb.data.sources.avazu import FIELDS

    random = np.random.default_rng(2)
    n = 400
    columns = {c: [str(x) for x in random.integers(0, 20, n)] for c in FIELDS[3:]}
    columns |= {
        "click": random.integers(0, 2, n).tolist(),
        "hour": [14102100 + int(h) for h in random.integers(0, 24, n)],
    }
    pl.DataFrame(columns).write_csv(tmp_path / "train.csv")
    pl.DataFrame(columns).drop("click").write_csv(tmp_path / "test.csv")
    artifact = artifact_of("avazu", tmp_path / "train.csv", tmp_path)
    expected = predicted(artifact, tmp_path / "train.csv", tmp_path / "p.parquet")
    assert expected["line"][0] == 2
    assert predicted(artifact, tmp_path / "test.csv", tmp_path / "q.parquet").equals(expected)
    np.testing.assert_allclose(
        expected["logit"].to_numpy()[is_test(artifact, tmp_path / "train.csv")],
        encoded_test_logits(artifact),
        atol=1e-6,
    )


def test_hashed_ids_predict_new_values_without_a_vocabulary(tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.txt", criteo_lines())
    artifact = artifact_of("criteo", train, tmp_path, ids="hash64", backend="hash", budget="20kB")
    assert not (artifact / "vocabularies").exists()
    report = load_artifact(artifact).report
    assert report["vocabulary_bytes"] == 0
    assert report["full_bytes"] is report["ratio"] is report["tables"][0]["ids"] is None  # there are no full tables
    logits = predicted(artifact, train, tmp_path / "p.parquet")["logit"].to_numpy()
    np.testing.assert_allclose(logits[is_test(artifact, train)], encoded_test_logits(artifact), atol=1e-6)
    new = write_lines(tmp_path / "new.txt", criteo_lines(seed=9))
    assert np.isfinite(predicted(artifact, new, tmp_path / "q.parquet")["logit"].to_numpy()).all()


@pytest.mark.parametrize("ids", ["vocabulary", "hash64"])
def test_integers_predict_as_the_texts_that_they_were_trained_as(tmp_path: Path, ids: Any) -> None:
    """Trained on CSV, whose ids are texts; asked with a Parquet of integers, or of pandas' floats."""
    (tmp_path / "train.csv").write_text("y,u\n" + "".join(f"{i % 2},{i % 7}\n" for i in range(300)))
    schema = tmp_path / "s.yaml"
    schema.write_text("label: y\ncategorical: [u]\n")
    data = tmp_path / "data"
    prepare(make_source("table", tmp_path / "train.csv", schema), data, ids=ids)
    write_artifact(train_run(data, tmp_path / "run", "hash", budget="1kB"), tmp_path / "a")
    artifact = load_artifact(tmp_path / "a")
    users = [3, 5, 0, 6]
    expected = artifact.logits({"u": [str(u) for u in users]})
    assert len(set(expected.tolist())) == len(users)
    assert (artifact.logits({"u": users}) == expected).all()
    assert (artifact.logits(pl.DataFrame({"u": users}).cast(pl.Float64)) == expected).all()


def test_a_source_that_makes_its_rows_needs_no_input(prepared: Path, tmp_path: Path) -> None:
    write_artifact(train_run(prepared, tmp_path / "run"), tmp_path / "a")
    done = predict_file(load_artifact(tmp_path / "a"), None, tmp_path / "p.parquet")
    assert done["rows"] == 3000
    with pytest.raises(UserError, match="leave out --input"):
        predict_file(load_artifact(tmp_path / "a"), tmp_path / "x.csv", tmp_path / "q.parquet")


def test_where_all_rows_are_malformed_that_is_what_is_said(criteo: tuple[Path, Path], tmp_path: Path) -> None:
    artifact, _ = criteo
    bad = write_lines(tmp_path / "bad.txt", ["1\tx", "2"])
    with pytest.raises(UserError, match=r"all 2 rows are malformed; see .*p\.parquet\.rejected\.tsv"):
        predict_file(load_artifact(artifact), bad, tmp_path / "p.parquet", max_rejected=1)
    assert len((tmp_path / "p.parquet.rejected.tsv").read_text().splitlines()) == 3
    with pytest.raises(UserError, match="--max-rejected -3: must be between 0 and 1"):
        predict_file(load_artifact(artifact), bad, tmp_path / "p.parquet", max_rejected=-3)


def test_a_number_that_is_too_large_for_the_model_is_rejected(tmp_path: Path) -> None:
    text = "y,u,x\n" + "".join(f"{i % 2},{i % 7},{i % 11}\n" for i in range(300))
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "s.yaml").write_text("label: y\ncategorical: [u]\ndense: [x]\n")
    prepare(make_source("table", tmp_path / "train.csv", tmp_path / "s.yaml"), tmp_path / "data")
    write_artifact(train_run(tmp_path / "data", tmp_path / "run"), tmp_path / "a")
    (tmp_path / "new.csv").write_text(text + "0,1,1e300\n0,1,3\n")
    found = predicted(tmp_path / "a", tmp_path / "new.csv", tmp_path / "p.parquet")
    assert found["line"].to_list() == [*range(2, 302), 303]
    assert found["logit"].is_finite().all()
    (line,) = (tmp_path / "p.parquet.rejected.tsv").read_text().splitlines()[1:]
    assert line.split("\t")[1:3] == ["302", "a number is too large to predict with"]


# -- as typed ---------------------------------------------------------------------------------------------------------


def test_the_commands(
    criteo: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact, train = criteo
    run = artifact.parent / "run"

    def typed(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recsys-emb", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()  # type: ignore[return-value]

    out = tmp_path / "a"
    code, text, _ = typed("compact", run, "--out", out, "--method", "prune", "--budget", "0.5", "--option",
                          "structure=rows_columns", "--json")  # fmt: skip
    assert code == 0
    report = json.loads(text)
    assert report["ratio"] <= 0.5
    assert report["backend"] == "full+prune"
    assert json.loads(typed("evaluate", out, "--json")[1])["auc"] == report["auc"]
    assert json.loads(typed("compare", run, out, "--json")[1])["runs"][0]["n"] == 1
    code, text, warned = typed("predict", out, "--input", train, "--out", tmp_path / "p.parquet", "--batch-size", 100)
    assert code == 0
    assert "600 rows" in text
    assert not warned
    strange = [line[: line.index("\t") + 1] + "\t" * 12 + "\tffffffff" * 26 for line in criteo_lines()]
    write_lines(tmp_path / "strange.txt", strange)
    code, text, warned = typed(
        "predict", out, "--input", tmp_path / "strange.txt", "--out", tmp_path / "s.parquet", "--json"
    )
    assert code == 0
    assert set(json.loads(text)["unknown_share"].values()) == {1.0}
    assert [line[: line.index(";")] for line in warned.splitlines()] == [
        f"warning: field 'C{i}': all values are unknown" for i in range(1, 27)
    ]
    code, text, _ = typed("compact", run, "--out", tmp_path / "b", "--method", "int4", "--no-evaluate")
    assert code == 0
    assert "full+int4" in text
    assert "test AUC" not in text
    listed = json.loads(typed("backends", "--json")[1])
    assert {"prune", "svd", "int8", "int4", "fp16", "drop_unseen"} <= {r["name"] for r in listed["post_training"]}
    for bad in (
        ("compact", run, "--out", out),
        ("predict", run, "--out", tmp_path / "q"),
        ("compact", out, "--out", "x"),
        ("compact", run, "--out", "x", "--method", "svd", "--option", "ranks"),
    ):
        code, _, error = typed(*bad)
        assert code == 2
        assert len(error.splitlines()) == 1
