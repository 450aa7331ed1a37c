"""`recsys-emb data` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from recsys_emb.data.cli import app
from recsys_emb.errors import UserError


def run(*args: str | Path) -> str:
    return CliRunner().invoke(app, [str(a) for a in args], catch_exceptions=False).output


@pytest.fixture
def table(tmp_path: Path) -> list[str | Path]:
    rows = [f"{i % 2},{i % 7},{['train', 'valid', 'test'][i // 2 % 3]}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["click,item,part", *rows]) + "\n")
    (tmp_path / "t.yaml").write_text("label: click\ncategorical: [item]\nsplit: {column: part}\n")
    return ["prepare", "table", "--input", tmp_path / "t.csv", "--schema", tmp_path / "t.yaml", "--out", tmp_path / "o"]


def test_prepare_then_describe(table: list[str | Path], tmp_path: Path) -> None:
    manifest = json.loads(run(*table, "--json", "--name", "mine", "--min-count", "2"))
    assert manifest["rows"] == {"train": 20, "valid": 20, "test": 20}
    assert (manifest["name"], manifest["min_count"]) == ("mine", 2)
    facts = json.loads(run("describe", tmp_path / "o", "--json"))
    assert facts["fields"][0]["ids"] == 8
    text = run("describe", tmp_path / "o")
    assert "mine: source table" in text
    assert "8 ids" in text
    with pytest.raises(UserError, match="--overwrite"):
        run(*table)
    assert "60 rows in" in run(*table, "--overwrite", "--ids", "hash64")
    assert "63-bit hashes" in run("describe", tmp_path / "o")


def test_options_reach_the_source(table: list[str | Path]) -> None:
    with pytest.raises(UserError, match="label_threshold: "):
        run(*table, "--option", "label_threshold=high")
    manifest = json.loads(run(*table, "--json", "--option", "label_threshold=0.5"))
    assert manifest["options"]["label_threshold"] == 0.5


def test_list_names_every_source() -> None:
    sources = json.loads(run("list", "--json"))
    assert {"criteo", "avazu", "movielens-1m", "amazon", "table", "synthetic"} <= set(sources)
    assert "split" in sources["criteo"]["options"]
    assert "criteo" in run("list")
