"""Raw rows with labels: the figures of the encoded rows, of known and unknown users apart, and columns passed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from recsys_emb import load_artifact
from recsys_emb.data.encode import prepare
from recsys_emb.data.like import open_reference
from recsys_emb.data.options import make_source
from recsys_emb.errors import UserError
from recsys_emb.report import input_tables
from recsys_emb.serving import evaluate_artifact, evaluate_input, predict_file, write_artifact
from tests.serving.conftest import train_run

OPTIONS: dict[str, Any] = {
    "label": {"column": "clicked", "positive": "Y", "negative": "N"},
    "dense": ["price"],
    "categorical": ["user", "item"],
    "multi_valued": [{"name": "tags", "separator": "|"}],
    "user": "user",
    "split": {"column": "part"},
}


def table(rows: int, seed: int, users: int) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    item = random.integers(0, 30, rows)
    return pl.DataFrame(
        {
            "id": [f"row {i}" for i in range(rows)],
            "clicked": np.where(random.random(rows) < 0.2 + 0.02 * item, "Y", "N"),
            "user": [f"u{x}" for x in random.integers(0, users, rows)],
            "item": [f"i{x}" for x in item],
            "price": [None if x < 0.1 else float(x) for x in random.random(rows)],
            "tags": ["|".join(f"t{x}" for x in random.integers(0, 9, k)) for k in random.integers(0, 4, rows)],
            "part": random.choice(["train", "valid", "test"], rows),
            "weight": random.integers(0, 3, rows),
        }
    )


def artifact_of(folder: Path, **options: Any) -> Path:
    ids = options.pop("ids", "vocabulary")
    backend = "hash" if ids == "hash64" else "full"
    folder.mkdir(exist_ok=True)
    table(900, 1, 40).write_csv(folder / "rows.csv")
    prepare(make_source("table", folder / "rows.csv", options={**OPTIONS, **options}), folder / "data", ids=ids)
    budget = {"budget": "20kB"} if backend == "hash" else {}
    write_artifact(train_run(folder / "data", folder / "run", backend, **budget), folder / "artifact")
    return folder / "artifact"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact_of(tmp_path_factory.mktemp("plain") / "a")


@pytest.mark.parametrize("options", [{}, {"weight": "weight"}, {"ids": "hash64"}], ids=["plain", "weights", "hashes"])
def test_raw_rows_have_the_figures_of_the_encoded_ones(tmp_path: Path, options: dict[str, Any]) -> None:
    """The test rows as a file of their own, without a split, and the same file prepared like the artifact."""
    artifact = load_artifact(artifact_of(tmp_path / "a", **options))
    test = table(900, 1, 40).filter(pl.col("part") == "test").drop("part")
    test.write_csv(tmp_path / "test.csv")
    found = evaluate_input(artifact, tmp_path / "test.csv")
    expected = evaluate_artifact(artifact)
    tomorrow = {**artifact.manifest.rows.options, "split": "test"}
    source = make_source("table", tmp_path / "test.csv", options=tomorrow)
    prepare(source, tmp_path / "like", like=open_reference(artifact.path))
    like = evaluate_artifact(artifact, data=tmp_path / "like")
    for key in ("auc", "logloss", "ne", "calibration", "gauc", "gauc_users", "gauc_rows", "users", "rows"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6)
        assert like[key] == pytest.approx(expected[key], rel=1e-6)
    assert found["unknown_share"] == expected["unknown_share"] == like["unknown_share"]
    assert found["rejected"] == 0


def test_known_and_unknown_values_apart(plain: Path, tmp_path: Path) -> None:
    """By scikit-learn, on the predictions of the same file with its columns passed on."""
    artifact = load_artifact(plain)
    table(700, 2, 80).write_csv(tmp_path / "tomorrow.csv")
    found = evaluate_input(artifact, tmp_path / "tomorrow.csv", ["item"])
    done = predict_file(artifact, tmp_path / "tomorrow.csv", tmp_path / "p", keep=["id", "clicked", "user", "price"])
    rows = pl.read_parquet(tmp_path / "p").with_columns(clicked=pl.col("clicked") == "Y")
    assert rows.columns == ["line", "id", "clicked", "user", "price", "logit", "probability"]
    trained = table(900, 1, 40).filter(pl.col("part") == "train")["user"].unique()
    known = rows["user"].is_in(trained.to_list())
    for name, part in (("known", rows.filter(known)), ("unknown", rows.filter(~known))):
        assert found["by"]["user"][name]["rows"] == len(part) > 100
        assert found["by"]["user"][name]["auc"] == pytest.approx(roc_auc_score(part["clicked"], part["logit"]))
    assert found["by"]["item"]["unknown"] == {"rows": 0, "auc": None}
    assert found["by"]["item"]["known"]["auc"] == pytest.approx(found["auc"])
    assert found["auc"] == pytest.approx(roc_auc_score(rows["clicked"], rows["logit"]))
    assert found["unknown_share"]["user"] == pytest.approx((~known).mean()) == done["unknown_share"]["user"]
    assert found["calibration"] == pytest.approx(rows["probability"].mean() / rows["clicked"].mean(), rel=1e-5)
    assert found["gauc_rows"] <= known.sum()
    shown = [str(cell) for t in input_tables(found) for column in t.columns for cell in column._cells]
    assert f"{(~known).sum()}" in shown
    assert f"{(~known).mean():.1%}" in shown


def test_rows_that_are_none_are_counted(plain: Path, tmp_path: Path) -> None:
    frame = table(300, 3, 40)
    text = frame.write_csv()
    (tmp_path / "t.csv").write_text(text.replace("row 7,Y,", "row 7,?,").replace("row 7,N,", "row 7,?,"))
    found = evaluate_input(load_artifact(plain), tmp_path / "t.csv")
    assert (found["rejected"], found["rows"]) == (1, 299)
    (tmp_path / "huge.csv").write_text(text + "row x,Y,u1,i1,1e300,,test,1\n")
    assert evaluate_input(load_artifact(plain), tmp_path / "huge.csv")["rejected"] == 1
    frame.with_columns(clicked=pl.lit("1")).write_csv(tmp_path / "t.csv")
    with pytest.raises(UserError, match=r"300 of 300 rows.*t\.csv line 2: label is neither positive nor neg"):
        evaluate_input(load_artifact(plain), tmp_path / "t.csv")
    assert {p.name for p in tmp_path.iterdir()} == {"t.csv", "huge.csv"}


def test_mistakes_in_one_line(plain: Path, tmp_path: Path) -> None:
    artifact = load_artifact(plain)
    frame = table(50, 4, 40)
    frame.write_csv(tmp_path / "t.csv")
    frame.drop("clicked").write_csv(tmp_path / "bare.csv")
    frame.filter(pl.col("clicked") == "Y").write_csv(tmp_path / "clicks.csv")
    frame.head(0).write_csv(tmp_path / "none.csv")
    for name, by, message in (
        ("bare.csv", [], "no column 'clicked', which label needs; it has 'id', 'user'"),
        ("clicks.csv", [], "AUC is undefined: all .* labels of the split are 1"),
        ("none.csv", [], r"none\.csv: no rows"),
        ("t.csv", ["tags"], "--by tags: not one of the categorical fields: user, item"),
        ("nowhere.csv", [], "no such file"),
    ):
        with pytest.raises(UserError, match=message) as error:
            evaluate_input(artifact, tmp_path / name, by)
        assert "\n" not in str(error.value)


def test_hashes_are_never_unknown(tmp_path: Path) -> None:
    artifact = load_artifact(artifact_of(tmp_path / "a", ids="hash64"))
    found = evaluate_input(artifact, tmp_path / "a" / "rows.csv")
    assert found["by"] == {}
    assert found["unknown_share"] is None
    with pytest.raises(UserError, match="--by user: ids are hashes, which are never unknown"):
        evaluate_input(artifact, tmp_path / "a" / "rows.csv", ["user"])


# -- columns that are passed on ---------------------------------------------------------------------------------------


def test_columns_are_passed_on_as_they_are(plain: Path, tmp_path: Path) -> None:
    artifact, frame = load_artifact(plain), table(300, 5, 40)
    frame.write_csv(tmp_path / "t.csv")
    frame = frame.with_columns(at=pl.datetime(2026, 11, 20), facts=pl.struct("item", "price"))
    frame.write_parquet(tmp_path / "t.parquet")
    predict_file(artifact, tmp_path / "t.csv", tmp_path / "bare")
    bare = pl.read_parquet(tmp_path / "bare")
    predict_file(artifact, tmp_path / "t.csv", tmp_path / "p", keep=["weight", "price", "id"])
    kept = pl.read_parquet(tmp_path / "p")
    assert kept.drop("weight", "price", "id").equals(bare)
    assert kept["weight"].to_list() == [str(w) for w in frame["weight"]]
    assert kept["price"].cast(pl.Float64).equals(frame["price"])
    columns = ["weight", "price", "tags", "at", "facts"]
    predict_file(artifact, tmp_path / "t.parquet", tmp_path / "q", keep=columns)
    assert pl.read_parquet(tmp_path / "q").select(columns).equals(frame.select(columns))


def test_columns_that_cannot_be_passed_on(plain: Path, tmp_path: Path) -> None:
    artifact = load_artifact(plain)
    folder = tmp_path / "log"
    folder.mkdir()
    table(50, 5, 40).write_parquet(folder / "a.parquet")
    table(50, 5, 40).with_columns(weight=pl.lit("heavy")).write_parquet(folder / "b.parquet")
    for keep, message in (
        ("line", "--keep line: the predictions have a column of that name"),
        ("nothing", "no column 'nothing', which --keep needs; it has 'id'"),
        ("weight", "--keep: the files differ in the types of their columns"),
    ):
        with pytest.raises(UserError, match=message) as error:
            predict_file(artifact, folder, tmp_path / "p", keep=[keep])
        assert "\n" not in str(error.value)
        assert {p.name for p in tmp_path.iterdir()} == {"log"}


def test_other_sources_pass_on_their_fields(prepared: Path, tmp_path: Path) -> None:
    write_artifact(train_run(prepared, tmp_path / "run"), tmp_path / "a")
    artifact = load_artifact(tmp_path / "a")
    field = artifact.schema.single_valued[0].name
    predict_file(artifact, None, tmp_path / "p", keep=[field])
    blocks = make_source(artifact.manifest.rows.source, options=artifact.manifest.rows.options).inputs()
    expected = pl.concat([block.frame for block in blocks])[field]
    assert pl.read_parquet(tmp_path / "p")[field].to_list() == expected.to_list()
    with pytest.raises(UserError, match="--keep label: source 'synthetic' passes on its fields: "):
        predict_file(artifact, None, tmp_path / "q", keep=["label"])
