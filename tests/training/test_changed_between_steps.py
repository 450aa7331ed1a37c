"""Backends that change their arrays between steps: a run that is killed goes on to what it would have come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_emb.config import parse_config
from recsys_emb.training import run as running
from recsys_emb.training.checkpoint import Checkpoints, load_tensors
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.trainer import TrainingState


class Killed(Exception):
    pass


class KilledAt(Silent):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        if progress.step == self.at:
            raise Killed


def best_weights(run: Path) -> dict[str, torch.Tensor]:
    folder = Checkpoints(load_run(run).checkpoints("train")).best()
    assert folder is not None
    return load_tensors(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("dpq", {"levels": 2, "bits": 4, "reset_every": 3}),
        ("mgqe", {"levels": 2, "bits": 4, "reset_every": 3}),
        ("cce", {"chunks": 2}),
    ],
)
def test_a_killed_run_comes_to_what_a_whole_one_does(
    prepared: Path, tmp_path: Path, backend: str, options: dict[str, Any]
) -> None:
    config = parse_config(
        {
            "data": {"path": str(prepared)},
            "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [8]},
            "embedding": {"backend": backend, "budget": 0.3, "options": options, "init_std": 0.1},
            "training": {
                "epochs": 3,
                "batch_size": 300,
                "eval_every": 4,
                "precision": "fp32",
                "learning_rate": 0.01,
                "lr_schedule": "linear",
            },
            "device": "cpu",
        }
    )
    whole = running.train(config, tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        running.train(config, tmp_path / "killed", KilledAt(14))
    resumed = running.train(config, tmp_path / "killed", Silent(), resume=True)
    assert resumed["auc"] == whole["auc"]
    expected, found = (best_weights(tmp_path / name) for name in ("whole", "killed"))
    assert expected.keys() == found.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
