"""Starts processes that train together over gloo, as torchrun would."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from recsys_emb.config import parse_config
from recsys_emb.distributed.exchange import RowExchange
from recsys_emb.errors import UserError
from recsys_emb.quiet import quiet_torch
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train
from recsys_emb.training.trainer import TrainingState

SEEN = "seen.json"


@dataclass(frozen=True)
class Run:
    """A training to do; ``stop_at``: end it after that step, as a process that is killed does."""

    config: Mapping[str, Any]
    out: Path
    stop_at: int | None = None
    resume: bool = False
    finish: bool = False  # with figures of the test split, and the page


class _Killed(Exception):
    pass


class _Losses(Silent):
    """Keeps every step's loss."""

    def __init__(self, stop_at: int | None) -> None:
        self.seen: list[float] = []
        self.stop_at = stop_at

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        self.seen.append(loss)
        if progress.step == self.stop_at:
            raise _Killed


def one_run(run: Run) -> dict[str, Any]:
    """Trains; the losses of its steps, and its report or ``{"error": message}``."""
    reporter = _Losses(run.stop_at)
    report: dict[str, Any] = {}
    try:
        report = train(parse_config(run.config), run.out, reporter, run.resume, run.finish)
    except _Killed:
        pass
    except UserError as error:
        report = {"error": str(error)}
    return {"losses": reporter.seen, "report": report}


def alone(run: Run) -> None:
    """On one process, noted as ``run_all`` notes it."""
    (run.out / SEEN).write_text(json.dumps(one_run(run)))


def seen(run: Path) -> dict[str, Any]:
    """What a run gave."""
    return json.loads((run / SEEN).read_text())


def run_all(processes: int, runs: Sequence[Run]) -> None:
    """``one_run`` of each of ``runs``, each on ``processes`` processes; what it gave is noted in the run's folder."""
    # A server that has imported everything forks the processes: it never computed, so its state is safe to copy.
    mp.get_context("forkserver").set_forkserver_preload(["recsys_emb.training.run", "recsys_emb.distributed.tables"])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (processes, runs, folder), nprocs=processes, start_method="forkserver")


def _rank(rank: int, processes: int, runs: Sequence[Run], folder: str) -> None:
    quiet_torch()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=processes)
    asked = _count_asked(rank, processes)
    for run in runs:
        asked.clear()
        gave = {**one_run(run), "asked": sum(asked)}
        if rank == 0:
            (run.out / SEEN).write_text(json.dumps(gave))
        dist.barrier()
    dist.destroy_process_group()


def _count_asked(rank: int, processes: int) -> list[int]:
    """How many rows every training lookup asks of other processes, from now on."""
    asked: list[int] = []
    original = RowExchange.__call__

    def counting(self: RowExchange, rows: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            asked.append(int((rows // (self.rows // processes) != rank).sum()))
        return original(self, rows)

    RowExchange.__call__ = counting  # type: ignore[method-assign]
    return asked
