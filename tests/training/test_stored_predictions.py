"""Predictions in a run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from recsys_emb.errors import UserError
from recsys_emb.report import load_report
from recsys_emb.training import run as running
from recsys_emb.training.metrics import Predictions
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.run_files import PREDICTIONS
from recsys_emb.training.stored_predictions import StoredPredictions
from tests.training.conftest import config_for


def test_a_finished_run_keeps_what_its_report_was_made_of(prepared: Path, tmp_path: Path) -> None:
    running.train(config_for(prepared, {"name": "lr"}, epochs=1), tmp_path / "run", Silent())
    stored = StoredPredictions.load(tmp_path / "run" / PREDICTIONS)
    assert stored is not None
    predictions = Predictions()
    predictions.append(*map(running.torch.from_numpy, (stored.logits, stored.labels)))
    figures = running.evaluate(load_run(tmp_path / "run"))
    report = load_report(tmp_path / "run")
    for key, value in running.task_of(load_run(tmp_path / "run").config).metrics(predictions).items():
        if key in ("auc", "logloss", "auc_stderr"):
            assert figures[key] == report[key] == pytest.approx(value, rel=1e-12)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    whole = StoredPredictions(np.float32([0.5, -1]), np.uint8([1, 0]), np.float32([1, 2]), np.array([True, False]))
    for predictions in (whole, StoredPredictions(whole.logits, whole.labels)):
        predictions.save(tmp_path / "p")
        loaded = StoredPredictions.load(tmp_path / "p")
        assert loaded is not None
        for name, array in vars(predictions).items():
            np.testing.assert_array_equal(getattr(loaded, name), array)
        assert loaded.same_rows(predictions)
        assert not loaded.same_rows(StoredPredictions(whole.logits, whole.labels[::-1], predictions.weights))
    assert not whole.same_rows(StoredPredictions(whole.logits, whole.labels))
    assert StoredPredictions.load(tmp_path / "none") is None


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x00" * 100])
def test_a_damaged_file_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p").write_bytes(content)
    with pytest.raises(UserError, match=r"p: damaged .*; delete it, or train the run again") as error:
        StoredPredictions.load(tmp_path / "p")
    assert "\n" not in str(error.value)
