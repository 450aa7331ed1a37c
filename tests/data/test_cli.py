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


def test_what_is_unknown_or_left_out_is_said_on_stderr(tmp_path: Path) -> None:
    """Five users like all items of three; the last of each is for testing, and no other row has it."""
    lines = [f"u{u} old{u % 2} old{(u + 1) % 2} mid new" for u in range(5)]
    (tmp_path / "Tiny.txt").write_text("\n".join([*lines, lines[0], "v a b c d e f g h", ""]))
    (tmp_path / "Tiny_item2attributes.json").write_text('{"mid": ["x"]}')
    done = CliRunner().invoke(app, ["prepare", "amazon", "--input", str(tmp_path / "Tiny.txt"), "--out",
                                    str(tmp_path / "o"), "--json"], catch_exceptions=False)  # fmt: skip
    duplicate = "1 of 7 lines are exact duplicates of earlier ones and were left out (14.3%)"
    joined = f"23 of 28 events have no category in {tmp_path / 'Tiny_item2attributes.json'} (82.1%)"
    warned = done.stderr.splitlines()
    assert warned[:2] == [f"warning: {duplicate}", f"warning: {joined}"]
    shares = json.loads(done.stdout)["oov_rate"]
    told = {(s, f) for s in ("valid", "test") for f, share in shares[s].items() if share >= 0.5}
    assert told
    assert {tuple(line.split()[1:5:3]) for line in warned[2:]} == {(s, f"'{f}':") for s, f in told}
    assert duplicate in run("describe", tmp_path / "o")
    assert json.loads(run("describe", tmp_path / "o", "--json"))["notes"] == [duplicate, joined]


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


def test_every_key_of_a_schema_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    described = json.loads(run("list", "table", "--json"))["options"]
    shown, told = run("list", "table"), " ".join(run("prepare", "--help").split())
    for option in described:
        assert f"{option['key']}: {option['description']}" in told
        for row in option["keys"]:
            assert f"  {row['key']} " in shown
            assert f"{row['key']}: {row['description']}" in told
    with pytest.raises(UserError, match=r"unknown data source 'tabel' .did you mean 'table'"):
        run("list", "tabel")


def test_guess_prints_a_schema(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("y,u\n" + "".join(f"{i // 5 % 2},u{i % 9}\n" for i in range(300)))
    text = run("guess", tmp_path / "t.csv")
    (tmp_path / "s.yaml").write_text(text)
    arguments = ["--input", tmp_path / "t.csv", "--schema", tmp_path / "s.yaml", "--out", tmp_path / "o"]
    assert "300 rows in" in run("prepare", "table", *arguments)
