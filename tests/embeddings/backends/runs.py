"""Small runs of a backend, and what must hold for each of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.serving.artifact import load_artifact
from recsys_emb.serving.compact import write_artifact
from recsys_emb.serving.evaluate import evaluate_artifact
from recsys_emb.training import run as running
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import RunDir, load_run


def config_for(data: Path, backend: str, **options: Any) -> RunConfig:
    """A fifth of the full tables, two epochs of 8 steps."""
    return parse_config(
        {
            "data": {"path": str(data)},
            "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [8]},
            "embedding": {"backend": backend, "budget": 0.2, "options": options},
            "training": {
                **{"epochs": 2, "batch_size": 300, "precision": "fp32", "learning_rate": 0.01, "l2_embedding": 0}
            },
            "device": "cpu",
        }
    )


def trained_and_served(config: RunConfig, folder: Path) -> tuple[RunDir, dict[str, Any]]:
    """A finished run and its report, whose bytes and AUC are those of the artifact."""
    report = running.train(config, folder / "run", Silent())
    run = load_run(folder / "run")
    write_artifact(run, folder / "artifact")
    stored = load_file(folder / "artifact/embedding.safetensors")
    assert (
        sum(t.nbytes for t in stored.values()) == report["serving_bytes"] == sum(t["bytes"] for t in report["tables"])
    )
    assert evaluate_artifact(load_artifact(folder / "artifact"))["auc"] == report["auc"]
    return run, report


class _Killed(Exception):
    pass


class _KilledAt(Silent):
    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise _Killed


def check_a_killed_run_ends_the_same(config: RunConfig, folder: Path, kill_at: int) -> None:
    """``kill_at``: the step, of all stages together."""
    whole = running.train(config, folder / "whole", Silent())
    with pytest.raises(_Killed):
        running.train(config, folder / "killed", _KilledAt(kill_at))
    resumed = running.train(config, folder / "killed", Silent(), resume=True)
    for key in ("auc", "logloss", "valid_auc", "serving_bytes", "training_bytes", "steps", "tables"):
        assert resumed[key] == whole[key], key
