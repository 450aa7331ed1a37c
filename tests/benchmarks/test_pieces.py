"""What benchmarks stand on: rows like an encoder's, the same rows for peers, answers over pipes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from benchmarks import _peer
from benchmarks._common import ROOT, alternate, command, markdown, spread
from benchmarks._raw import criteo_file
from benchmarks._rows import criteo_rows, shop_rows
from benchmarks.peers._columns import read_columns
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.options import make_source
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError


def test_made_rows_have_falling_counts_and_all_ids(tmp_path: Path) -> None:
    criteo_rows(tmp_path / "d", ids=3000, rows=500, splits=("train", "test"))
    dataset = open_dataset(tmp_path / "d")
    assert sum(dataset.schema.vocabularies.values()) == 3000
    for name, size in dataset.schema.vocabularies.items():
        counts = dataset.counts(name)
        assert len(counts) == size
        assert counts.sum() == 500
        assert (np.diff(counts[1:]) <= 0).all()
    assert torch.equal(dataset.split("train").ids, dataset.split("test").ids)


def test_a_peer_gets_the_rows_that_we_train(tmp_path: Path) -> None:
    shop_rows(tmp_path / "d", rows=50)
    dataset = open_dataset(tmp_path / "d")
    (batch,) = BatchLoader(dataset.split("train"), dataset.schema, 50)
    columns = read_columns(tmp_path / "d", limit=40)
    assert torch.equal(torch.from_numpy(columns.labels), batch.labels[:40])
    assert batch.sequences is not None
    for key, ids in zip(batch.sparse.keys(), batch.sparse.values().view(3, 50)):
        assert columns.ids[key].tolist() == ids[:40].tolist()
    for key, history in batch.sequences.to_dict().items():
        padded = columns.histories[key]
        for row, (ids, length) in enumerate(zip(history.to_dense()[:40], columns.lengths)):
            assert padded[row, 50 - length :].tolist() == ids.tolist()
            assert not padded[row, : 50 - length].any()


def test_the_raw_file_is_read_as_criteo(tmp_path: Path) -> None:
    criteo_file(tmp_path / "train.txt", rows=300, ids=1000)
    criteo_file(tmp_path / "peer.csv", rows=300, ids=1000, header=True)
    (block,) = make_source("criteo", tmp_path / "train.txt").blocks()
    assert not len(block.rejected)
    other = pl.read_csv(tmp_path / "peer.csv", schema_overrides={f"C{i}": pl.String for i in range(1, 27)})
    assert block.labels.tolist() == other["label"].to_list()
    for name in ("I1", "I13"):
        assert block.frame[name].to_list() == pytest.approx(other[name].to_list())
    for name in ("C1", "C26"):
        spelled = [None if v is None else int(v, 16) for v in other[name].to_list()]
        assert block.frame[name].to_list() == spelled
        assert 0 < sum(v is None for v in spelled) < 100


def test_a_session_is_asked_over_pipes() -> None:
    program = """
import time
from benchmarks.peers._serve import serve

class Session:
    def __init__(self, settings):
        print("noise of a library")
        self.pause = settings["pause"]

    def nap(self, times):
        print("more noise")
        time.sleep(self.pause * times)

serve(Session)
"""
    lines = [{"pause": 0.01}, {"do": "nap", "n": 1}, {"do": "nap", "n": 3}]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    done = subprocess.run(
        [sys.executable, "-c", program], input=text, capture_output=True, text=True, check=True, cwd=ROOT
    )
    ready, once, thrice = map(json.loads, done.stdout.splitlines())
    assert ready == {"ready": True}
    assert once["seconds"] >= 0.01
    assert thrice["seconds"] >= 0.03
    assert "more noise" in done.stderr


def test_a_missing_environment_of_peers_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_peer, "PYTHON", tmp_path / "python")
    with pytest.raises(UserError, match="make peers"):
        _peer.Peer("fuxictr", {})


def test_rounds_take_turns() -> None:
    seen: list[str] = []

    def side(name: str, value: float) -> float:
        seen.append(name)
        return value

    spreads = alternate({"a": lambda: side("a", 1.0), "b": lambda: side("b", 2.0)}, rounds=3)
    assert seen == ["a", "b"] * 3
    assert spreads["b"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_the_command_leaves_out_where_its_result_went() -> None:
    assert (
        command("data", ["--rows", "5", "--out", "/x y", "--ids", "2"]) == "python -m benchmarks.data --rows 5 --ids 2"
    )
    assert markdown(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
