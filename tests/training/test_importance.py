"""Permutation importance: the strongest field first, a useless one near zero, whole rows of lists moved."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from recsys_emb import cli
from recsys_emb.config import parse_config
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.data.schema import CategoricalField, DatasetSchema, SequenceField
from recsys_emb.data.split import Jagged, Split
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.serving import field_importance, load_artifact, write_artifact
from recsys_emb.training.importance import bytes_of_tables, moved_together, permuted, selected
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import restore, train
from recsys_emb.training.run_dir import RunDir, load_run

SIGNAL = 3


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """Of data where of the categorical fields C1, C2 and C3 alone act on the click, C1 most."""
    folder = tmp_path_factory.mktemp("importance")
    options = {"rows": 40_000, "ids": 400, "dense": 1, "signal_fields": SIGNAL, "seed": 5}
    prepare(make_source("synthetic", options=options), folder / "data")
    tree = {
        "data": {"path": str(folder / "data")},
        "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [8]},
        "embedding": {"backend": "hash", "budget": 0.8},
        "training": {"epochs": 1, "batch_size": 512, "precision": "fp32", "learning_rate": 0.01},
        "device": "cpu",
    }
    train(parse_config(tree), folder / "run", Silent())
    return load_run(folder / "run")


def test_strong_fields_come_first_and_useless_ones_are_near_zero(run: RunDir) -> None:
    figures = field_importance(run.path, permutations=3)
    rows = {row["field"]: row for row in figures["fields"]}
    assert list(rows) == sorted(rows, key=lambda name: -rows[name]["auc_lost"])
    assert next(name for name in rows if name != "I1") == "C1"
    useless = [row for name, row in rows.items() if name.startswith("C") and int(name[1:]) > SIGNAL]
    assert len(useless) == 26 - SIGNAL
    for row in useless:
        assert abs(row["auc_lost"]) < max(4 * row["stderr"], 0.002) < rows["C1"]["auc_lost"] / 4
        assert abs(row["logloss_gained"]) < rows["C1"]["logloss_gained"] / 4
    assert rows["I1"]["bytes"] is None
    total = sum(row["bytes"] for row in figures["fields"] if row["bytes"] is not None)
    assert total == run.report["serving_bytes"]
    assert rows["C1"]["auc_per_byte"] == rows["C1"]["auc_lost"] / rows["C1"]["bytes"]


def test_an_artifact_has_the_importance_of_its_run(run: RunDir, tmp_path: Path) -> None:
    write_artifact(run, tmp_path / "a", evaluate=False)
    of_run, of_artifact = (field_importance(path, permutations=1, rows=500) for path in (run.path, tmp_path / "a"))
    assert of_run["rows"] == 500
    assert of_run["fields"] == of_artifact["fields"]
    model, _ = restore(run)
    assert bytes_of_tables(model.embedding.backend) == bytes_of_tables(load_artifact(tmp_path / "a").backend)


def test_lists_move_as_whole_rows_and_aligned_sequences_together() -> None:
    fields = [CategoricalField(name=n, vocabulary=n, multi_valued=n == "tags") for n in ("item", "kind", "tags")]
    sequences = (
        SequenceField(name="items", vocabulary="item", target="item", max_length=3),
        SequenceField(name="other", vocabulary="item", target="item", max_length=9),
        SequenceField(name="kinds", vocabulary="kind", target="kind", max_length=3, aligned_with="items"),
    )
    sizes = {"item": 99, "kind": 99, "tags": 99}
    schema = DatasetSchema(dense=("x",), categorical=tuple(fields), sequences=sequences, vocabularies=sizes)
    assert moved_together(schema) == [("x",), ("item",), ("kind",), ("tags",), ("items", "kinds"), ("other",)]
    lists = [[1, 2], [], [3]]
    jagged = Jagged(torch.tensor([1, 2, 3], dtype=torch.int32), torch.tensor([0, 2, 2, 3]))
    split = Split(
        name="valid",
        labels=torch.tensor([0, 1, 1], dtype=torch.uint8),
        weights=torch.tensor([1.0, 2.0, 3.0]),
        dense=torch.tensor([[0.0], [1.0], [2.0]]),
        ids=torch.tensor([[10, 20], [11, 21], [12, 22]], dtype=torch.int32),
        jagged=dict.fromkeys(("tags", "items", "other", "kinds"), jagged),
    )
    order = torch.tensor([2, 0, 1])

    def rows_of(field: Jagged) -> list[list[int]]:
        return [field.values[a:b].tolist() for a, b in zip(field.offsets[:-1], field.offsets[1:])]

    moved = permuted(split, schema, ("items", "kinds"), order)
    for name in ("items", "kinds"):
        assert rows_of(moved.jagged[name]) == [[3], [1, 2], []]
    assert rows_of(moved.jagged["tags"]) == rows_of(moved.jagged["other"]) == lists
    assert torch.equal(moved.ids, split.ids)
    assert permuted(split, schema, ("kind",), order).ids.tolist() == [[10, 22], [11, 20], [12, 21]]
    assert permuted(split, schema, ("x",), order).dense.tolist() == [[2.0], [0.0], [1.0]]
    assert split.ids.tolist() == [[10, 20], [11, 21], [12, 22]]  # the split itself stays
    some = selected(split, torch.tensor([0, 2]))
    assert rows_of(some.jagged["tags"]) == [[1, 2], [3]]
    assert (some.labels.tolist(), some.ids.tolist()) == ([0, 1], [[10, 20], [12, 22]])


def test_the_command(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*more: str) -> str:
        arguments = ["recsys-emb", "importance", str(run.path), "--permutations", "1", "--rows", "400", *more]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code in (0, None)
        return capsys.readouterr().out

    page = tmp_path / "page.html"
    figures = json.loads(command("--json", "--out", str(page)))
    assert len(figures["fields"]) == 27
    for row in figures["fields"]:
        assert f">{row['field']}<" in page.read_text()
    assert "<svg" in page.read_text()
    assert figures["fields"][0]["field"] in command()


def test_no_permutation_is_refused(run: RunDir) -> None:
    with pytest.raises(UserError, match="--permutations 0: must be 1 or more"):
        field_importance(run.path, permutations=0)
    assert open_dataset(run.config.data.path).schema.dense == ("I1",)
