"""Arithmetic of a training step: multiplications and additions of its products, forward and backward.

torch counts its own operations, so ours are counted in a process without the native ones, which do the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from benchmarks._common import ROOT
from benchmarks._steps import Steps, run_config
from recsys_emb.quiet import quiet_torch


def gflop(data: Path, model: str, batch_size: int, options: Mapping[str, Any]) -> float:
    """10^9 floating-point operations of one step of ours; ``options`` are the model's."""
    settings = {"data": str(data.resolve()), "model": model, "batch_size": batch_size, "options": dict(options)}
    command = [sys.executable, "-m", "benchmarks._gflop", json.dumps(settings)]
    environment = {**os.environ, "RECSYS_EMB_NATIVE": "0"}
    counted = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return float(counted.stdout)


def main() -> None:
    settings = json.loads(sys.argv[1])
    quiet_torch()
    training = {"batch_size": settings["batch_size"]}
    with tempfile.TemporaryDirectory() as scratch:
        config = run_config(Path(settings["data"]), settings["model"], training, options=settings["options"])
        steps = Steps(config, Path(scratch))
        with FlopCounterMode(display=False) as counter:
            steps.step()
    print(counter.get_total_flops() / 1e9)


if __name__ == "__main__":
    main()
