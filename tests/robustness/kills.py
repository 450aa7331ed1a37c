"""Runs of the command in a process of their own that gets a real signal at a chosen moment.

A moment is a number of calls made by Python code, so it falls anywhere: in a step, an evaluation, the writing of a
checkpoint, between two stages; and the same number is the same moment every time.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib.pyplot  # noqa: F401  imported once, in the process that the others are forked from
import yaml

from recsys_emb import cli
from recsys_emb.training import run  # noqa: F401

TIMES = ("train_seconds", "samples_per_second", "peak_rss_bytes")
PHASES = {
    ("checkpoint.py", "_write"): "writing a checkpoint",
    ("trainer.py", "_evaluate"): "evaluating",
    ("trainer.py", "_step"): "a step",
    ("stage_runner.py", "_begin"): "between stages",
    ("optembed.py", "search"): "searching",
    ("run_dir.py", "create"): "making the folder",
    ("run_dir.py", "finish"): "finishing",
}
"""Functions whose calls are told apart, by file and name."""
ELSEWHERE = "elsewhere"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@dataclass
class Ended:
    """How a process ended: exit code (negative: the signal that killed it), stdout, stderr, calls made.

    where: the phase in which the signal came.
    phases: calls between the begin and the end of each function of ``PHASES``, as (name, first, last).
    """

    code: int
    out: str
    err: str
    where: str = ""
    calls: int = 0
    phases: list[tuple[str, int, int]] = field(default_factory=list)


def recsys_emb(
    arguments: list[str], scratch: Path, by: signal.Signals | None = None, at: int = 0, file_bytes: int | None = None
) -> Ended:
    """``recsys-emb ARGUMENTS`` in a new process, which gets signal ``by`` at its call number ``at``.

    ``file_bytes``: no file may grow beyond.
    """
    scratch.mkdir(exist_ok=True)
    process = _context.Process(target=_child, args=(arguments, scratch, by, at, file_bytes))
    process.start()
    process.join()
    assert process.exitcode is not None
    ended = Ended(process.exitcode, (scratch / "out").read_text(), (scratch / "err").read_text())
    if at:
        ended.where = (scratch / "where").read_text() if (scratch / "where").is_file() else ""
        (scratch / "where").unlink(missing_ok=True)
    if (scratch / "calls").is_file():
        facts = json.loads((scratch / "calls").read_text())
        ended.calls, ended.phases = facts["calls"], [tuple(p) for p in facts["phases"]]
        (scratch / "calls").unlink()
    return ended


def _child(arguments: list[str], scratch: Path, by: signal.Signals | None, at: int, file_bytes: int | None) -> None:
    if file_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes fail instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(scratch / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    calls = 0
    phases: list[tuple[str, int, int]] = []
    open_phases: list[tuple[FrameType, str, int]] = []

    def count(frame: FrameType, event: str, _: Any) -> None:
        nonlocal calls
        if event == "return":
            if open_phases and open_phases[-1][0] is frame:
                _, name, first = open_phases.pop()
                phases.append((name, first, calls))
                if name == "finishing":
                    sys.setprofile(None)  # what follows draws the report's page
            return
        calls += 1
        if calls == at:
            assert by is not None
            (scratch / "where").write_text(open_phases[-1][1] if open_phases else ELSEWHERE)
            os.kill(os.getpid(), by)
        if event == "call":
            code = frame.f_code
            name = PHASES.get((code.co_filename.rsplit("/", 1)[-1], code.co_name))
            if name is not None:
                open_phases.append((frame, name, calls))

    sys.argv = ["recsys-emb", *arguments]
    sys.setprofile(count)
    try:
        cli.main()
    finally:
        sys.setprofile(None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        sys.stdout.flush()
        sys.stderr.flush()
        (scratch / "calls").write_text(json.dumps({"calls": calls, "phases": phases}))


@dataclass
class Victim:
    """A run that may be killed and continued as often as one likes.

    Args:
        config: of the run.
        folder: where the run, its YAML file and what it prints go.
    """

    config: dict[str, Any]
    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "run.yaml").write_text(yaml.safe_dump(self.config))

    @property
    def out(self) -> Path:
        return self.folder / "run"

    def train(self, by: signal.Signals | None = None, at: int = 0, file_bytes: int | None = None) -> Ended:
        """Begins or continues the run."""
        resume = ["--resume"] if (self.out / "config.yaml").is_file() else []
        arguments = ["train", str(self.folder / "run.yaml"), "--out", str(self.out), "--json", *resume]
        return recsys_emb(arguments, self.folder / "printed", by, at, file_bytes)

    def result(self) -> tuple[dict[str, Any], list[Any]]:
        """The report and the log, but for times and memory."""
        report = json.loads((self.out / "report.json").read_text())
        for key in TIMES:
            report.pop(key)
        for stage in report["stages"]:
            stage.pop("seconds")
        events = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        return report, [{k: v for k, v in e.items() if k != "samples_per_second"} for e in events]
