"""Searches around a tiny run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys_emb.search.config import Search, load_search

WIDTHS = {"embedding.options.widths.*": {"choices": [0, 1, 2, 4], "groups": 3}}
RATE = {"training.learning_rate": {"float": [0.001, 0.03], "log": True}}

MakeSearch = Callable[..., Search]


@pytest.fixture
def make_search(prepared: Path, tmp_path: Path) -> MakeSearch:
    """A search around a factorisation machine on 3,000 rows; keyword arguments are keys of its YAML file."""

    def make(*overrides: str, **keys: Any) -> Search:
        return load_search(search_file(prepared, tmp_path, **keys), overrides)

    return make


def search_file(prepared: Path, folder: Path, **keys: Any) -> Path:
    """The YAML file of a search, with its base beside it."""
    base = {
        "data": {"path": str(prepared)},
        "model": {"name": "fm", "embedding_dim": 4},
        "training": {"epochs": 2, "batch_size": 512, "learning_rate": 0.01, "precision": "fp32"},
        "device": "cpu",
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(base))
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({"base": "run.yaml", "baselines": [], **keys}))
    return path
