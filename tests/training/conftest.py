"""A run that takes a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys_emb.config import RunConfig, parse_config


def config_for(data: Path, model: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    return parse_config(
        {
            "data": {"path": str(data)},
            "model": model or {"name": "deepfm", "embedding_dim": 4, "hidden": [16], "dropout": 0.1},
            "training": {"epochs": 3, "batch_size": 256, "precision": "fp32", "learning_rate": 0.01, **training},
            "device": "cpu",
        }
    )
