"""A peer in a process of its own environment, asked for one thing at a time."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT
from recsys_emb.errors import UserError

PEERS = ("fuxictr", "deepctr")
PYTHON = ROOT / ".venv-peers" / "bin" / "python"
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
"""For a tuned peer, what ``runtime.configure`` sets for us."""


class Peer:
    """A module of ``benchmarks.peers`` in a process of its own. Use it as a context; leaving it ends the process.

    Args:
        module: its name.
        settings: what its ``Session`` takes.
        tuned: with our allocator settings; the session is told, too.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], tuned: bool = False) -> None:
        if not PYTHON.is_file():
            raise UserError(f"--peer: {PYTHON} is missing; `make peers` installs it")
        environment = {**os.environ, **(ALLOCATOR if tuned else {})}
        self._process = subprocess.Popen(
            [str(PYTHON), "-m", f"benchmarks.peers.{module}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )
        self._ask({**settings, "tuned": tuned})

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def batch_ms(self, what: str, batches: int) -> float:
        """Milliseconds a batch of ``train`` or ``predict``."""
        return 1e3 * self.seconds(what, batches) / batches

    def seconds(self, what: str, n: int) -> float:
        """How long the session's method ``what`` takes when called with ``n``."""
        return self._ask({"do": what, "n": n})["seconds"]

    def step_gflop(self) -> float:
        """10^9 floating-point operations of the products of a training step."""
        return float(self._ask({"do": "gflop", "n": 1})["result"])

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"{process.args} ended with code {process.wait()}")
        return json.loads(line)


def model_settings(data: Path, model: str, embedding_dim: int, batch_size: int) -> dict[str, Any]:
    """What the sessions of ``PEERS`` take: the training rows of a prepared folder, a model by recsys_emb's name."""
    return {"data": str(data.resolve()), "model": model, "embedding_dim": embedding_dim, "batch_size": batch_size}
