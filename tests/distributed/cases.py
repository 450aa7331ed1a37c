"""Trainings that give the same losses on any number of processes, for every backend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from recsys_emb.embeddings.base import backend_registry
from recsys_emb.embeddings.stages import Train

STEPS = 12


def _trainings(backend: str) -> list[bool]:
    """Which stages of a method are trainings, at its default options."""
    cls = backend_registry.get(backend)
    return [isinstance(stage, Train) for stage in cls.stages(cls.Config())]


def ends_with_training(backend: str) -> bool:
    return _trainings(backend)[-1]


BACKENDS = [name for name in backend_registry.names() if all(_trainings(name))]
SEARCHING = [name for name in backend_registry.names() if not all(_trainings(name))]
"""Those with a stage that a single process has to do; see ``before_last_training``."""
OPTIONS: dict[str, dict[str, Any]] = {
    "cafe": {"every": 3},  # rows change owners
    "deeplight": {"every": 3, "unit": 1, "flops": 0.01},
    "dpq": {"levels": 2, "bits": 3},
    "mgqe": {"levels": 3, "bits": 2},
    "multi_hash": {"importance": True},
    "matryoshka": {"choices": [1, 4], "losses": "sum"},  # drawn ones would be each process's own
    "optembed": {"generations": 1, "parents": 2, "mutations": 2, "crossovers": 2},
}
UNBOUNDED = {"full", "optembed", "matryoshka"}


def config(
    data: Path,
    backend: str = "full",
    model: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **training: Any,
) -> dict[str, Any]:
    return {
        "data": {"path": str(data)},
        "model": model or {"name": "deepfm", "embedding_dim": 4, "hidden": [8]},
        "embedding": {
            "backend": backend,
            "budget": None if backend in UNBOUNDED else 0.7,
            "options": OPTIONS.get(backend, {}) if options is None else options,
            "init_std": 0.1,
        },
        # Nine batches an epoch, the last of 2 of the 2,378 rows: fewer than three processes want.
        "training": {
            "max_steps": STEPS,
            "eval_every": 4,
            "batch_size": 297,
            "precision": "fp32",
            "learning_rate": 0.02,
            "l2_embedding": 0.01,
            **training,
        },
        "device": "cpu",
    }


def before_last_training(run: Path, copy: Path) -> Path:
    """A copy of a run in which what comes after the last stage that only one process can do is still to be done."""
    shutil.copytree(run, copy)
    stages = list(json.loads((run / "embedding.json").read_text()))
    for stage in stages[2:]:
        shutil.rmtree(copy / "checkpoints" / stage)
    return copy
