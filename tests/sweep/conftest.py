"""A tiny sweep that all tests of the package read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.sweep.methods import chosen_methods
from recsys_emb.sweep.run import Sweep
from recsys_emb.sweep.write import write_tables
from recsys_emb.training.stop import StopMark

BUDGETS = (0.5, 0.1)
CHOSEN = ("full, one column narrower", "int8", "drop_unseen", "full, smaller D", "hash", "plain hash", "tuned")
SETTINGS = """
int8: {choices: [{}, {options: {scales: fp16}}]}
"full, smaller D": {choices: [{}, {l2: 0.1}]}
hash: {choices: [{}, {l2: 0.1}, {options: {balance: 1.0}}]}
plain hash: {uses: hash}
tuned: {uses: drop_unseen, choices: [{finetune: {epochs: 1, learning_rate: 0.01}}]}
"""


@dataclass(frozen=True)
class Swept:
    """A sweep of two seeds that has been run, and what it told."""

    sweep: Sweep
    told: list[tuple[int, Any, Any]]

    def result(self, seed: int) -> dict[str, Any]:
        result: dict[str, Any] = json.loads((self.sweep.results / f"sweep-{seed}.json").read_text())
        return result


@pytest.fixture(scope="session")
def tiny(prepared: Path) -> RunConfig:
    return parse_config(
        {
            "data": {"path": str(prepared)},
            "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [8]},
            "training": {"epochs": 1, "batch_size": 600, "learning_rate": 0.01, "precision": "fp32"},
        }
    )


@pytest.fixture(scope="session")
def swept(tiny: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """Only to be read."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "settings.yaml").write_text(SETTINGS)
    methods = chosen_methods(CHOSEN, folder / "settings.yaml")
    sweep = Sweep(tiny, methods, BUDGETS, folder / "out", folder / "out" / "runs", command="recsys-emb sweep tiny.yaml")
    sweep.check()
    told: list[tuple[int, Any, Any]] = []
    for seed in (2, 1):  # the seed of the trials comes second
        sweep.seed(seed, lambda seed, row: told.append((seed, row["method"], row["budget"])), StopMark())
    write_tables(sweep.results)
    return Swept(sweep, told)
