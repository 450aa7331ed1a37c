"""The command as a user starts it: torchrun, a process that dies, and the run continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from recsys_emb import cli
from recsys_emb.training.run_dir import load_run


def torchrun(file: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    return subprocess.Popen(
        [*command, "recsys_emb", "train", str(file), "--out", str(out), "--json", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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
    started = torchrun(file, out)
    try:
        checkpoints = out / "checkpoints" / "train"
        deadline = time.monotonic() + 300
        while not list(checkpoints.glob("step-*/state.json")):
            assert started.poll() is None, started.stderr.read() if started.stderr else ""
            assert time.monotonic() < deadline
            time.sleep(0.05)
        ranks = children(started.pid)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        _, error = started.communicate(timeout=60)
    finally:
        started.kill()
    assert started.returncode == 1
    assert f"Signal 9 (SIGKILL) received by PID {ranks[1]}" in error
    assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
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
