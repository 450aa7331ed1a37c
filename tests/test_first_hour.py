"""The first hour with a shop's own log, from the command line alone: guess, prepare, train, search, sweep, compact,
score tomorrow."""

from __future__ import annotations

import datetime
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from recsys_emb import cli

DAY = datetime.datetime(2026, 11, 20)
Typed = Callable[..., tuple[int, str, str]]


shop_log = runpy.run_path(str(Path(__file__).parents[1] / "datasets" / "shop" / "make.py"))["shop_log"]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Typed:
    """Runs a command in ``tmp_path``; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recsys-emb", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return run


def test_the_first_hour(typed: Typed, tmp_path: Path) -> None:
    shop_log(tmp_path / "shop.csv", 3000, 1, DAY - datetime.timedelta(minutes=30_000), range(150), minutes=10)
    shop_log(tmp_path / "tomorrow.csv", 800, 2, DAY, range(75, 225), minutes=10)

    code, schema, _ = typed("data", "guess", "shop.csv")
    assert code == 0
    (tmp_path / "clicks.yaml").write_text(schema)
    assert yaml.safe_load(schema) == {
        "label": {"column": "clicked", "positive": "Y", "negative": "N"},
        "dense": [{"name": "price", "transform": "log1p"}] if "log1p" in schema else ["price"],
        "categorical": ["user_id", "item", "device"],
        "multi_valued": [{"name": "tags", "separator": "|"}],
        "sequences": [{"name": "last_items", "target": "item"}],
        "user": "user_id",
        "split": {"time": "ts"},
    }
    assert "#   currency: always EUR" in schema
    assert "#   session: a value of its own in every row" in schema

    code, text, warnings = typed("data", "prepare", "table", "--schema", "clicks.yaml", "--input", "shop.csv",
                                 "--out", "prepared/shop", "--json")  # fmt: skip
    manifest = json.loads(text)
    assert (code, manifest["rejected"], manifest["name"]) == (0, 0, "shop")
    assert manifest["rows"] == {"train": 2400, "valid": 300, "test": 300}
    assert not manifest["notes"]
    assert not warnings

    (tmp_path / "run.yaml").write_text(
        "data: {path: prepared/shop}\nmodel: {name: din, embedding_dim: 8, hidden: [16]}\ndevice: cpu\n"
        "embedding: {backend: hash, budget: 0.5}\n"
        "training: {epochs: 3, batch_size: 256, learning_rate: 0.01, precision: fp32}\n"
    )
    code, text, _ = typed("train", "run.yaml", "--out", "runs/din", "--json")
    trained = json.loads(text)
    assert (code, trained["dataset"]) == (0, "shop")
    assert "bayes_auc" not in trained  # nobody knows how well a shop's clicks can be told
    assert json.loads(typed("train", "--out", "runs/din", "--resume", "--json")[1]) == trained

    (tmp_path / "search.yaml").write_text(
        "base: run.yaml\nbudget: 0.5\nbaselines: []\nsampler: random\n"
        "space: {embedding.backend: {choices: [hash, qr]}}\n"
    )
    code, text, _ = typed("search", "search.yaml", "--trials", "2", "--set", "training.epochs=1",
                          "--out", "runs/search", "--json")  # fmt: skip
    found = json.loads(text)
    assert code == 0
    assert found["winner"]["serving_bytes"] <= 0.5 * found["full_bytes"]
    assert (tmp_path / "runs" / "search" / "best.yaml").is_file()

    code, text, _ = typed("sweep", "run.yaml", "--budgets", "0.5", "0.2", "--methods", "hash", "int8", "--seeds", "1",
                          "--set", "training.epochs=1", "--out", "runs/sweep", "--json")  # fmt: skip
    cells = {(point["method"], point["budget"]): point["auc"] for point in json.loads(text)["points"]}
    assert (code, set(cells)) == (0, {("full", None), ("int8", None), ("hash", 0.5), ("hash", 0.2)})
    assert abs(cells["int8", None] - cells["full", None]) < 0.01
    assert typed("compare", "runs/din", "runs/sweep/runs/1/full/choice-0", "--out", "compared.html")[0] == 0
    for page in ("runs/din", "runs/search", "runs/sweep"):
        assert "<h1" in (tmp_path / page / "report.html").read_text()

    assert typed("compact", "runs/din", "--out", "artifact", "--method", "int8")[0] == 0

    code, text, warnings = typed("evaluate", "artifact", "--input", "tomorrow.csv", "--by", "item", "--json")
    figures = json.loads(text)
    assert (code, figures["rows"], figures["rejected"]) == (0, 800, 0)
    known = figures["by"]["user_id"]
    assert known["known"]["rows"] + known["unknown"]["rows"] == 800
    assert known["unknown"]["rows"] / 800 == pytest.approx(figures["unknown_share"]["user_id"])
    assert 0.3 < figures["unknown_share"]["user_id"] < 0.7  # half of tomorrow's users are new
    assert figures["unknown_share"]["item"] < 0.05
    assert figures["unknown_share"]["last_items"] < 0.05
    assert figures["auc"] > 0.6  # something was learned
    assert figures["gauc_users"] <= figures["users"] <= 75
    code, text, _ = typed("evaluate", "artifact", "--input", "tomorrow.csv")
    assert code == 0
    assert f"{figures['auc']:.5f}" in text
    assert f"{known['unknown']['rows']:,}" in text

    code, _, _ = typed("predict", "artifact", "--input", "tomorrow.csv", "--out", "p.parquet",
                       "--keep", "user_id", "--keep", "clicked")  # fmt: skip
    assert code == 0
    predicted = pl.read_parquet(tmp_path / "p.parquet")
    assert predicted.columns == ["line", "user_id", "clicked", "logit", "probability"]
    assert predicted["line"].to_list() == list(range(2, 802))
    assert roc_auc_score(predicted["clicked"] == "Y", predicted["logit"]) == pytest.approx(figures["auc"])

    code, text, _ = typed("data", "prepare", "table", "--like", "artifact", "--input", "tomorrow.csv",
                          "--out", "prepared/tomorrow", "--option", "split=test", "--json")  # fmt: skip
    assert (code, json.loads(text)["rows"]["test"]) == (0, 800)
    code, text, _ = typed("evaluate", "artifact", "--data", "prepared/tomorrow", "--json")
    assert json.loads(text)["auc"] == pytest.approx(figures["auc"])


def test_what_stands_in_the_way_says_how_to_go_on(typed: Typed, tmp_path: Path) -> None:
    """Labels that are not told, another vocabulary, --input of a run: one line each, with the remedy."""
    shop_log(tmp_path / "shop.csv", 600, 1, DAY - datetime.timedelta(minutes=6000), range(30), minutes=10)
    (tmp_path / "bare.yaml").write_text("label: clicked\ncategorical: [user_id, item]\n")
    prepare = ("data", "prepare", "table", "--schema", "bare.yaml", "--input", "shop.csv", "--out", "data")
    code, _, error = typed(*prepare)
    assert code == 2
    assert error.count("\n") == 1
    assert error.rstrip().endswith("`label: {column: clicked, positive: Y}` says which value is a click")
    (tmp_path / "bare.yaml").write_text(
        "label: {column: clicked, positive: Y}\ncategorical: [user_id, item]\n"
        "split: {time: ts, valid: {from: 2026-11-19}, test: {from: 2026-11-19 12:00}}\n"
    )
    code, text, _ = typed(*prepare, "--json")
    assert (code, json.loads(text)["rows"]) == (0, {"train": 456, "valid": 72, "test": 72})
    (tmp_path / "run.yaml").write_text("data: {path: data}\nmodel: {name: lr}\ntraining: {epochs: 1}\ndevice: cpu\n")
    assert typed("train", "run.yaml", "--out", "run")[0] == 0
    for arguments, message in (
        (("evaluate", "run", "--input", "shop.csv"), "run: not an artifact (no artifact.json); `recsys-emb compact`"),
        (("evaluate", "run", "--by", "item"), "--by: is of raw rows; give them with --input"),
        (("evaluate", "run", "--input", "shop.csv", "--data", "data"), "--input and --data: give one of them"),
    ):
        code, _, error = typed(*arguments)
        assert (code, error.count("\n")) == (2, 1)
        assert message in error
