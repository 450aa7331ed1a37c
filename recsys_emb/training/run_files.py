"""What is read of a run's folder without torch, so that reports begin at once; run_dir.py says what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys_emb.files import read_json_lines

PREDICTIONS = "test_predictions.safetensors"


def how_to_continue(run: Path) -> str:
    """Advice for messages about an unfinished run."""
    return f"continue it with `recsys-emb train --out {run} --resume`"


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``, oldest first; none before training starts. UserError names a broken line."""
    path = run / "metrics.jsonl"
    return read_json_lines(path) if path.is_file() else []
