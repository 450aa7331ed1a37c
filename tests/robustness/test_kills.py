"""Runs that are killed, stopped or run out of disk continue to the result that they would have had."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from recsys_emb.lock import sole_writer
from recsys_emb.training.run_dir import load_run
from tests.robustness.kills import Ended, Victim
from tests.robustness.survival import kill_and_continue, random_phases, uninterrupted


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Victim, Ended]]:
    """Uninterrupted runs by backend, made when asked for."""

    class Runs(dict[str, tuple[Victim, Ended]]):
        def __missing__(self, backend: str) -> tuple[Victim, Ended]:
            self[backend] = uninterrupted(prepared, backend, tmp_path_factory.mktemp(backend))
            return self[backend]

    return Runs()


@pytest.mark.parametrize(
    "phases",
    [["writing a checkpoint", "evaluating"], ["making the folder", "finishing"]],
    ids=["checkpoint, evaluation", "begin, end"],
)
def test_killed_runs_give_the_same_result(whole: Any, tmp_path: Path, phases: list[str]) -> None:
    kill_and_continue(whole["full"], tmp_path / "a", phases, random.Random(1))


def test_killed_between_stages(whole: Any, tmp_path: Path) -> None:
    kill_and_continue(whole["optembed"], tmp_path / "a", ["between stages"], random.Random(2))


@pytest.mark.stress
@pytest.mark.parametrize("backend", ["full", "optembed"])
@pytest.mark.parametrize("seed", range(20))
def test_killed_anywhere(whole: Any, tmp_path: Path, backend: str, seed: int) -> None:
    draw = random.Random(seed)
    kill_and_continue(whole[backend], tmp_path / "a", random_phases(backend, draw), draw)


@pytest.mark.parametrize(("by", "code", "phase"), [(signal.SIGTERM, 143, "a step"), (signal.SIGINT, 130, "evaluating")])
def test_a_signal_saves_and_says_how_to_continue(
    whole: Any, tmp_path: Path, by: signal.Signals, code: int, phase: str
) -> None:
    reference, ended = whole["full"]
    victim = Victim(reference.config, tmp_path / "a")
    in_phase = [p for p in ended.phases if p[0] == phase]
    _, first, last = in_phase[len(in_phase) // 2]
    stopped = victim.train(by, (first + last) // 2 if phase == "a step" else first + 2)
    assert stopped.code == code
    how = f"recsys-emb train --out {victim.out} --resume"
    assert stopped.err == f"recsys-emb: stopped by {by.name}; continue it with `{how}`\n"
    steps = [int(p.name.removeprefix("step-")) for p in (victim.out / "checkpoints/train").glob("step-*")]
    assert (max(steps) % 4 == 0) == (phase == "evaluating")  # where the signal came
    assert len(evaluations(victim)) < len(evaluations(reference))
    done = victim.train()
    assert done.code == 0, done.err
    assert victim.result() == reference.result()


def test_two_writers_of_one_folder(whole: Any, tmp_path: Path) -> None:
    reference, _ = whole["full"]
    victim = Victim(reference.config, tmp_path / "a")
    victim.out.mkdir()
    with sole_writer(victim.out, "this run"):
        refused = victim.train()
    assert refused.code == 2
    message = f"{victim.out}: another process (id {os.getpid()}) is writing this run; wait for it, or name another"
    assert refused.err.startswith(f"recsys-emb: {message}")
    assert refused.err.count("\n") == 1
    assert sorted(p.name for p in victim.out.iterdir()) == ["LOCK"]
    assert victim.train().code == 0  # the lock went with its holder


def test_a_full_disk_keeps_the_last_checkpoint(whole: Any, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the log outgrows it after some evaluations."""
    reference, _ = whole["full"]
    victim = Victim(reference.config, tmp_path / "a")
    full = victim.train(file_bytes=checkpoint_bytes(reference) - 1)
    assert full.code == 2
    how = f"recsys-emb train --out {victim.out} --resume"
    assert full.err.count("\n") == 1
    assert f"File too large; the last checkpoint is as it was: mend this, then continue it with `{how}`" in full.err
    done = victim.train()
    assert done.code == 0, done.err
    assert victim.result() == reference.result()


def checkpoint_bytes(victim: Victim) -> int:
    return max(f.stat().st_size for f in (victim.out / "checkpoints/train").rglob("*.safetensors"))


def evaluations(victim: Victim) -> list[dict[str, Any]]:
    return [m for m in load_run(victim.out).metrics() if m["event"] == "eval"]
