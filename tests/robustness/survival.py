"""A small run, killed as often as one likes and continued, against one that was never killed."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

from tests.robustness.kills import Ended, Victim


def config_for(data: Path, backend: str = "full") -> dict[str, Any]:
    """2,400 rows in steps of 256: 10 an epoch, evaluations every 4."""
    searched = {"generations": 1, "mutations": 2, "crossovers": 2, "parents": 2}
    return {
        "data": {"path": str(data)},
        "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [16], "dropout": 0.1},
        "embedding": {
            "backend": backend,
            "budget": None if backend == "full" else 0.5,
            "options": searched if backend == "optembed" else {},
        },
        "training": {
            **{"epochs": 2, "batch_size": 256, "learning_rate": 0.03, "eval_every": 4},
            **{"precision": "fp32", "patience": 9, "l2_embedding": 1e-3},
        },
        "device": "cpu",
    }


def uninterrupted(data: Path, backend: str, folder: Path) -> tuple[Victim, Ended]:
    victim = Victim(config_for(data, backend), folder)
    ended = victim.train()
    assert ended.code == 0, ended.err
    return victim, ended


def random_phases(backend: str, draw: random.Random) -> list[str]:
    """Where to kill one run, one after another; "" is anywhere."""
    phases = ["", "", "writing a checkpoint", "evaluating", "a step"]
    if backend == "optembed":
        phases += ["between stages", "searching"]
    return draw.sample(phases, 3)


def kill_and_continue(whole: tuple[Victim, Ended], folder: Path, phases: list[str], draw: random.Random) -> list[str]:
    """One run, killed in each of ``phases`` one after another, gives the result of ``whole``; where each kill came.

    Moments are those of ``whole``: a resumed run does other things at them.
    """
    reference, ended = whole
    victim = Victim(reference.config, folder)
    came = []
    for phase in phases:
        at = draw.choice(moments(ended, phase)) if phase else draw.randrange(1, ended.calls)
        killed = victim.train(signal.SIGKILL, at)
        if killed.code == 0:  # a resumed run makes fewer calls
            break
        assert killed.code == -signal.SIGKILL, killed.err
        came.append(killed.where)
    done = victim.train()
    assert done.code == 0, done.err
    assert victim.result() == reference.result()
    return came


def moments(ended: Ended, phase: str) -> list[int]:
    return [n for name, first, last in ended.phases for n in range(first, last) if name == phase]
