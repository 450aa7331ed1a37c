"""Training throughput on one process and on several of this machine, and what `recsys-emb plan` expects of up to 64.

    python -m benchmarks.processes                                # DeepFM, 5 million ids, 1 and 2 processes
    python -m benchmarks.processes --model dcnv2 --ids 33800000 --processes 1 2 4

Each run is `recsys-emb train` in processes of its own, under torchrun where there are several; they share the
machine's cores equally. Losses of all runs are compared: they must be the same to fp32 rounding. The curve is of one
device a process, of the machine that the plan assumes, not of this one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import ROOT, alternate, command, machine, markdown, page, parser, save, show
from benchmarks._rows import criteo_rows
from benchmarks._steps import run_config
from recsys_emb.config import dump_config, load_config
from recsys_emb.distributed.plan import plan_run
from recsys_emb.distributed.workload import of_dataset
from recsys_emb.training.run_dir import load_run

CURVE = (1, 2, 4, 8, 16, 32, 64)
DEVICE_MEMORY = 80 * 10**9


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "processes", rounds=3)
    options.add_argument("--model", default="deepfm")
    options.add_argument("--ids", type=int, default=5_000_000)
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options.add_argument("--steps", type=int, default=60)
    options.add_argument("--batch-size", type=int, default=4096)
    options.add_argument("--curve-batch-size", type=int, default=65_536, help="of the plan's curve, over all devices")
    arguments = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = {"command": command("processes", argv), **measure(arguments, Path(folder)), "machine": machine()}
    save(result, arguments.out, table(result))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rows a second by processes, the last validation logloss of each, and the plan's curve."""
    criteo_rows(folder / "data", arguments.ids, arguments.steps * arguments.batch_size // 2, ("train", "valid", "test"))
    training = {
        "max_steps": arguments.steps,
        "eval_every": arguments.steps,
        "batch_size": arguments.batch_size,
        "precision": "fp32",
    }
    file = folder / "run.yaml"
    file.write_text(dump_config(run_config(folder / "data", arguments.model, training)))
    losses: dict[int, float] = {}

    def rate(processes: int) -> float:
        report = trained(file, folder / "run", processes)
        losses[processes] = report["valid_logloss"]
        return report["samples_per_second"]

    rates = alternate({str(p): lambda p=p: rate(p) for p in arguments.processes}, arguments.rounds)
    config = load_config(file, [f"training.batch_size={arguments.curve_batch_size}", "device=auto"])
    made = [plan_run(config, of_dataset(config.data.path), devices, DEVICE_MEMORY) for devices in CURVE]
    return {
        "model": arguments.model,
        "ids": arguments.ids,
        "batch_size": arguments.batch_size,
        "rows_per_second": rates,
        "valid_logloss": losses,
        "plan": [
            {k: p[k] for k in ("devices", "rows_per_second", "slowest", "seconds", "sent_per_step")} for p in made
        ],
    }


def trained(file: Path, out: Path, processes: int) -> dict[str, Any]:
    """The report of a run on so many processes."""
    shutil.rmtree(out, ignore_errors=True)
    module = ["-m", "recsys_emb", "train", str(file), "--out", str(out), "--json"]
    if processes > 1:
        module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *module]
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *module], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a run on {processes} processes failed:\n{done.stderr}")
    return load_run(out).report


def table(result: dict[str, Any]) -> str:
    measured = [
        [p, show(rate, 0), f"{result['valid_logloss'][int(p)]:.6f}"] for p, rate in result["rows_per_second"].items()
    ]
    first = result["plan"][0]["rows_per_second"]
    curve = [
        [
            str(p["devices"]),
            f"{p['rows_per_second']:,.0f}",
            f"{p['rows_per_second'] / first:.1f}",
            p["slowest"],
            f"{p['sent_per_step']['total'] / 1e6:,.1f} MB",
        ]
        for p in result["plan"]
    ]
    notes = (
        f"{result['model']}, {result['ids']:,} ids, batches of {result['batch_size']}. Rows a second as median "
        "(min, max); below what `recsys-emb plan` expects of accelerators, an estimate and no measurement."
    )
    return page(
        result,
        notes,
        markdown(["processes", "rows/s", "valid logloss"], measured),
        markdown(["devices", "rows/s, planned", "times one", "slowest part", "sent a device and step"], curve),
    )


if __name__ == "__main__":
    main()
