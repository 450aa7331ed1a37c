"""Runs that are killed, stopped or run out of disk continue to the result that they would have had."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from recsys_emb.training.lock import sole_writer
from recsys_emb.training.run_dir import load_run
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


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Victim, Ended]]:
    """Uninterrupted runs by backend, made when asked for."""

    class Runs(dict[str, tuple[Victim, Ended]]):
        def __missing__(self, backend: str) -> tuple[Victim, Ended]:
            victim = Victim(config_for(prepared, backend), tmp_path_factory.mktemp(backend))
            ended = victim.train()
            assert ended.code == 0, ended.err
            self[backend] = victim, ended
            return self[backend]

    return Runs()


def moments(ended: Ended, phase: str) -> list[int]:
    return [n for name, first, last in ended.phases for n in range(first, last) if name == phase]


def kill_and_continue(whole: tuple[Victim, Ended], folder: Path, phases: list[str], draw: random.Random) -> None:
    """One run, killed in each of ``phases`` one after another ("" is anywhere), gives the result of ``whole``."""
    victim = Victim(whole[0].config, folder)
    for phase in phases:
        ended = whole[1]
        at = draw.choice(moments(ended, phase)) if phase else draw.randrange(1, ended.calls)
        killed = victim.train(signal.SIGKILL, at)
        if killed.code == 0:  # a resumed run makes fewer calls
            break
        assert killed.code == -signal.SIGKILL, killed.err
    done = victim.train()
    assert done.code == 0, done.err
    assert victim.result() == whole[0].result()


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
    phases = ["", "", "writing a checkpoint", "evaluating", "a step"]
    if backend == "optembed":
        phases += ["between stages", "searching"]
    kill_and_continue(whole[backend], tmp_path / "a", draw.sample(phases, 3), draw)


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
    how = f"recsys-emb train {victim.out}/config.yaml --out {victim.out} --resume"
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
    with sole_writer(victim.out):
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
    how = f"recsys-emb train {victim.out}/config.yaml --out {victim.out} --resume"
    assert full.err.count("\n") == 1
    assert f"File too large; the last checkpoint is as it was: mend this, then continue it with `{how}`" in full.err
    done = victim.train()
    assert done.code == 0, done.err
    assert victim.result() == reference.result()


def checkpoint_bytes(victim: Victim) -> int:
    return max(f.stat().st_size for f in (victim.out / "checkpoints/train").rglob("*.safetensors"))


def evaluations(victim: Victim) -> list[dict[str, Any]]:
    return [m for m in load_run(victim.out).metrics() if m["event"] == "eval"]
