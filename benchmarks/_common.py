"""What all benchmarks share: alternating rounds, spreads, the machine, a result as JSON and as a table."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from recsys_emb.training import runtime

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parent.parent


def parser(doc: str | None, name: str, rounds: int | None = None) -> argparse.ArgumentParser:
    """With the options that benchmarks share: ``--out``, and ``--rounds`` where something is timed."""
    made = argparse.ArgumentParser(
        f"python -m benchmarks.{name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if rounds is not None:
        made.add_argument("--rounds", type=int, default=rounds, help="times that each side is measured, in turn")
    made.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="a table is written beside it")
    return made


def command(name: str, argv: Sequence[str] | None) -> str:
    """The command line that makes a result again, without its ``--out``."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "--out" in words:
        at = words.index("--out")
        del words[at : at + 2]
    return shlex.join(["python", "-m", f"benchmarks.{name}", *words])


def alternate(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, dict[str, float]]:
    """Measures every side once a round, so that a slow minute of the machine hits all of them; spreads by name."""
    values: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, measure in sides.items():
            values[name].append(measure())
    return {name: spread(v) for name, v in values.items()}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def seconds(work: Callable[[], object]) -> float:
    """How long ``work`` takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def in_child(module: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """What ``answer(request)`` of a benchmark says, asked in a process of its own, so that peaks of memory are its."""
    program = f"import json, sys; from {module} import answer; print(json.dumps(answer(json.loads(sys.argv[1]))))"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(request)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{module} failed on {request}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions."""
    return {**runtime.environment(), "memory_gb": round(psutil.virtual_memory().total / 1e9, 1)}


def save(result: Mapping[str, Any], out: Path, text: str) -> None:
    """Writes ``out`` and the table beside it, and prints the table."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    out.with_suffix(".md").write_text(text)
    print(text)


def page(result: Mapping[str, Any], notes: str, *tables: str) -> str:
    """A result in Markdown: what made it, its tables, the machine."""
    where = result["machine"]
    on = (
        f"{where['processor']}, {where['cpus']} CPUs, {where['threads']} threads, {where['memory_gb']} GB, "
        f"torch {where['packages']['torch']}."
    )
    return "\n\n".join([f"Made by `{result['command']}`. {notes}", *tables, on]) + "\n"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def show(value: Mapping[str, float], digits: int = 1) -> str:
    """``median (min, max)``."""
    return f"{value['median']:,.{digits}f} ({value['min']:,.{digits}f}, {value['max']:,.{digits}f})"
