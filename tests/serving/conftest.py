"""Tiny trained runs that the tests of artifacts share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_emb.config import parse_config
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train
from recsys_emb.training.run_dir import RunDir, load_run


def train_run(
    data: Path, out: Path, backend: str = "full", compact: dict[str, Any] | None = None, **embedding: Any
) -> RunDir:
    tree = {
        "data": {"path": str(data)},
        "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [16]},
        "embedding": {"backend": backend, **embedding},
        "training": {"epochs": 1, "batch_size": 256, "precision": "fp32", "learning_rate": 0.01},
        "compact": compact,
        "device": "cpu",
    }
    train(parse_config(tree), out, Silent())
    return load_run(out)


@pytest.fixture(scope="session")
def run_of(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunDir]:
    """A run of a backend, trained once. Never written to."""
    folder, runs = tmp_path_factory.mktemp("runs"), dict[str, RunDir]()

    def get(backend: str) -> RunDir:
        if backend not in runs:
            budget = None if backend == "full" else 0.5
            options = {"generations": 1} if backend == "optembed" else {}
            runs[backend] = train_run(prepared, folder / backend, backend, budget=budget, options=options)
        return runs[backend]

    return get
