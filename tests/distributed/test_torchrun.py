"""The command as a user starts it: torchrun, a process that dies, and the run continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from recsys_emb import cli
from recsys_emb.training.run_dir import load_run


def torchrun(file: Path, out: Path, *arguments: str, restarts: int = 0) -> subprocess.Popen[str]:
    options = ["--standalone", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m"]
    return subprocess.Popen(
        [*command, "recsys_emb", "train", str(file), "--out", str(out), "--json", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest(out: Path) -> int:
    """Step of the newest checkpoint, 0 while there is none."""
    return max((int(p.parent.name[5:]) for p in out.glob("checkpoints/train/step-*/manifest.json")), default=0)


def ranks_with_checkpoint(started: subprocess.Popen[str], out: Path, since: int, ended: Sequence[int]) -> list[int]:
    """Ids of two processes, none of them ``ended``, once a checkpoint newer than ``since`` is there."""
    deadline = time.monotonic() + 300
    ranks: list[int] = []
    while newest(out) <= since or len(ranks) != 2 or set(ranks) & set(ended):
        assert started.poll() is None, started.stderr.read() if started.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
        ranks = children(started.pid)
    return ranks


def children(pid: int) -> list[int]:
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the processes in Linux's /proc")
def test_a_process_that_dies_ends_all_and_the_run_continues(prepared: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "run"
    config = {
        "data": {"path": str(prepared)},
        "model": {"name": "fm", "embedding_dim": 4},
        "training": {"epochs": 1000, "batch_size": 300, "eval_every": 20, "patience": 1000, "max_steps": 300},
        "device": "cpu",
    }
    file.write_text(yaml.safe_dump(config))
    started = torchrun(file, out, restarts=1)
    try:
        first = ranks_with_checkpoint(started, out, since=0, ended=[])
        os.kill(first[1], signal.SIGKILL)  # torchrun starts both again, which go on from the checkpoint
        ranks = ranks_with_checkpoint(started, out, since=newest(out), ended=first)
        os.kill(ranks[1], signal.SIGKILL)
        _, error = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 1
    assert f"Signal 9 (SIGKILL) received by PID {ranks[1]}" in error
    how = f"recsys-emb train --out {out} --resume"
    assert f"rank 0: another process of the run ended, see its message; continue it with `{how}`" in error
    assert not any(Path(f"/proc/{pid}").exists() for pid in [*first, *ranks])
    assert not (out / "DONE").exists()

    output, error = torchrun(file, out, "--resume").communicate(timeout=300)
    report = json.loads(output)  # of one process alone
    assert load_run(out).report == {k: v for k, v in report.items() if k != "run"}
    assert (report["steps"], report["processes"]) == (300, 2)
    steps = [m["step"] for m in load_run(out).metrics() if m["event"] == "eval"]
    assert steps == list(range(20, 301, 20))


@pytest.mark.parametrize(
    ("rank", "arguments", "message"),
    [
        ("1", ["nowhere.yaml", "--out", "run"], "recsys-emb: rank 1: config nowhere.yaml: No such file or directory"),
        ("0", ["nowhere.yaml"], "recsys-emb: rank 0: --out: name the run folder, so that all processes agree on it"),
    ],
)
def test_a_mistake_says_whose_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(sys, "argv", ["recsys-emb", "train", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.strip() == message
