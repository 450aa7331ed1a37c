"""Notes about fields that look declared wrongly: lists of id:weight, sequences of values that the target never has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from recsys_emb.data.cli import app
from recsys_emb.data.encode import prepare
from recsys_emb.data.like import open_reference
from recsys_emb.data.options import make_source

OPTIONS: dict[str, Any] = {
    "label": "y",
    "categorical": ["item"],
    "multi_valued": [{"name": "tags", "separator": "|"}],
    "sequences": [{"name": "seen", "target": "item", "separator": "|"}],
}


def notes(folder: Path, tags: list[str], seen: list[str], **arguments: Any) -> list[dict[str, Any]]:
    """Of 120 rows whose item is i0 to i5; tags and histories take turns."""
    rows = [f"{i % 2},i{i % 6},{tags[i % len(tags)]},{seen[i % len(seen)]}" for i in range(120)]
    (folder / "t.csv").write_text("\n".join(["y,item,tags,seen", *rows]) + "\n")
    source = make_source("table", folder / "t.csv", options=OPTIONS)
    return prepare(source, folder / "out", overwrite=True, **arguments)["notes"]


@pytest.mark.parametrize(
    ("tags", "count"),
    [
        (["a:0.5|b:1", "c:2e-3|d:-1", "plain"], 160),  # of 200 values
        (["a:0.5", "plain|other"], None),
        (["a:b|c:d"], None),
        (["10:30", "11:15"], 120),
        (["12|13"], None),
        ([""], None),
    ],
)
def test_ids_with_weights(tmp_path: Path, tags: list[str], count: int | None) -> None:
    found = notes(tmp_path, tags, ["i1"])
    assert [n["count"] for n in found] == ([] if count is None else [count])
    if count is not None:
        assert "values of 'tags' look like id:weight" in found[0]["what"]


@pytest.mark.parametrize(
    ("seen", "count"),
    [
        (["i1|i2", "i3"], None),
        (["i1|i2", "x"], None),  # a third of the values
        (["i1", "I2|I3|I4"], 180),  # of 240
        (["(i1)|(i2)"], 240),
    ],
)
def test_sequences_written_unlike_their_target(tmp_path: Path, seen: list[str], count: int | None) -> None:
    for ids in ("vocabulary", "hash64"):
        found = notes(tmp_path, ["a"], seen, ids=ids)
        expected = [] if count is None or ids == "hash64" else [count]
        assert [n["count"] for n in found] == expected
    notes(tmp_path, ["a"], seen)
    found = notes(tmp_path, ["a"], seen, like=open_reference(tmp_path / "out"))
    assert [n["count"] for n in found] == ([] if count is None else [count])
    assert all("'seen' never occur in its target 'item'" in n["what"] for n in found)


def test_they_are_said(tmp_path: Path) -> None:
    rows = [f"{i % 2},i{i % 6},a:1,(i{i % 6})" for i in range(120)]
    (tmp_path / "t.csv").write_text("\n".join(["y,item,tags,seen", *rows]) + "\n")
    (tmp_path / "t.yaml").write_text(
        "label: y\ncategorical: [item]\nmulti_valued: [{name: tags, separator: '|'}]\n"
        "sequences: [{name: seen, target: item, separator: '|'}]\n"
    )
    arguments = ["prepare", "table", "--input", "t.csv", "--schema", "t.yaml", "--out", "out"]
    paths = [str(tmp_path / a) if "." in a or a == "out" else a for a in arguments]
    lines = CliRunner().invoke(app, paths, catch_exceptions=False).stderr.splitlines()
    assert lines[0].startswith("warning: 120 of 120 values of 'tags' look like id:weight")
    assert lines[1].endswith("never occur in its target 'item'; are both written alike? (100.0%)")
