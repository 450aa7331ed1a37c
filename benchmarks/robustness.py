"""What runs survive: SIGKILLs at random moments, damaged files, and the change from one process to several.

    python -m benchmarks.robustness
    python -m benchmarks.robustness --kills 2 --cases 100 --processes 2 --backends full hash
    python -m benchmarks.robustness --auc experiments/movielens-1m/deepfm.yaml

Runs are those of tests/robustness and tests/distributed, and more of them. A run that ends otherwise than one that was
never killed, and a file that is neither read right nor refused in one line, end the benchmark with the case. ``--auc``
trains a config on one process and on several, and compares figures of the test split.
"""

from __future__ import annotations

import argparse
import logging
import math
import multiprocessing
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import command, machine, markdown, page, parser, save
from benchmarks.processes import trained
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from tests.distributed.cases import BACKENDS, SEARCHING, STEPS, before_last_training, config, ends_with_training
from tests.distributed.ranks import Run, alone, run_all, seen
from tests.robustness.fuzz import try_many
from tests.robustness.readers import READERS
from tests.robustness.survival import kill_and_continue, random_phases, uninterrupted

PRELOADED = ["tests.distributed.ranks", "tests.robustness.readers", "tests.robustness.survival"]
"""What processes would otherwise have to import one by one."""
SHARES = {"tsv": 0.05, "csv": 0.12, "json": 0.4, "dataset": 0.12, "artifact": 0.13, "checkpoint": 0.18}
"""Of the damaged files; more of those that are quickly read."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "robustness")
    options.add_argument("--kills", type=int, default=20, help="SIGKILLs of runs of each of --killed")
    options.add_argument("--killed", nargs="+", default=["full", "optembed"], help="backends")
    options.add_argument("--cases", type=int, default=100_000, help="damaged files over all readers")
    options.add_argument("--processes", type=int, nargs="+", default=[2, 3], help="compared with one")
    options.add_argument("--backends", nargs="+", default=[*BACKENDS, *SEARCHING], help="trained on several processes")
    options.add_argument("--auc", type=Path, metavar="CONFIG", help="compare test figures of this run, too")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args(argv)
    multiprocessing.set_forkserver_preload(PRELOADED)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = {"command": command("robustness", argv), **measure(arguments, Path(folder)), "machine": machine()}
    save(result, arguments.out, table(result))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    data = folder / "data"
    prepare(make_source("synthetic", options={"rows": 3000, "ids": 2000, "seed": 3}), data, name="tiny")
    return {
        "seed": arguments.seed,
        "kills": [kills(data, b, arguments.kills, arguments.seed, folder / f"killed-{b}") for b in arguments.killed],
        "processes": equality(data, arguments.backends, arguments.processes, folder / "processes"),
        "auc": [] if arguments.auc is None else figures(arguments.auc, arguments.processes, folder / "auc"),
        "damaged": [
            damages(name, math.ceil(share * arguments.cases), arguments.seed, folder / name)
            for name, share in SHARES.items()
        ],
    }


def equality(data: Path, backends: Sequence[str], processes: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Of each backend the largest relative difference of a step's loss on so many processes from that on one."""
    runs = {name: Run(config(data, name), folder / f"1-{name}") for name in backends}
    for run in runs.values():
        alone(run)
    rows: list[dict[str, Any]] = [{"backend": name, "steps": STEPS, "differences": {}} for name in backends]
    for count in processes:
        several = {name: _on_several(run, folder / f"{count}-{name}") for name, run in runs.items()}
        run_all(count, list(several.values()))
        for row in rows:
            one, other = (seen(side[row["backend"]].out)["losses"][-STEPS:] for side in (runs, several))
            row["differences"][count] = max(abs(b - a) / a for a, b in zip(one, other, strict=True))
    return rows


def _on_several(run: Run, out: Path) -> Run:
    backend = run.config["embedding"]["backend"]
    if backend in SEARCHING and ends_with_training(backend):
        return Run(run.config, before_last_training(run.out, out), resume=True)
    return Run(run.config, out)


def figures(file: Path, processes: Sequence[int], folder: Path) -> list[dict[str, Any]]:
    """Test figures of a config on one process and on each number of ``processes``."""
    rows = []
    for count in (1, *processes):
        report = trained(file, folder / str(count), count)
        row = {k: report[k] for k in ("auc", "logloss", "best_step", "steps", "dataset", "model")}
        rows.append({"processes": count, **row})
    return rows


def kills(data: Path, backend: str, count: int, seed: int, folder: Path) -> dict[str, Any]:
    """Runs of a backend that were killed and continued up to three times each, and where."""
    whole = uninterrupted(data, backend, folder / "whole")
    draw = random.Random(seed)
    where: Counter[str] = Counter()
    runs = 0
    while where.total() < count:
        runs += 1
        where.update(kill_and_continue(whole, folder / str(runs), random_phases(backend, draw), draw))
    return {"backend": backend, "runs": runs, "kills": where.total(), "where": dict(where.most_common())}


def damages(name: str, cases: int, seed: int, folder: Path) -> dict[str, Any]:
    """How many damaged files a reader read and how many it refused."""
    folder.mkdir()
    logging.disable()  # warnings of checkpoints that are passed over
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reader = READERS[name](folder)
        tally = try_many(reader, cases, first_seed=seed)
    logging.disable(logging.NOTSET)
    return {"reader": reader.name, "cases": tally.total(), "read": tally["read"], "refused": tally["refused"]}


def table(result: dict[str, Any]) -> str:
    killed = [
        [r["backend"], str(r["runs"]), str(r["kills"]), ", ".join(f"{n} {name}" for name, n in r["where"].items())]
        for r in result["kills"]
    ]
    damaged = [[r["reader"], *(f"{r[k]:,}" for k in ("cases", "read", "refused"))] for r in result["damaged"]]
    total = [f"{sum(r[k] for r in result['damaged']):,}" for k in ("cases", "read", "refused")]
    counts = list(result["processes"][0]["differences"])
    compared = [[r["backend"], *(f"{r['differences'][c]:.1e}" for c in counts)] for r in result["processes"]]
    notes = (
        "Killed runs ended with the report and the log of one that was never killed, times aside. Every damaged file "
        "was read right or refused in one line. Differences are the largest of a step's loss, relative to one process."
    )
    tables = [
        markdown(["backend", "runs", "SIGKILLs", "in"], killed),
        markdown(["damaged", "cases", "read", "refused"], [*damaged, ["all", *total]]),
        markdown(["backend", *(f"{c} processes against 1" for c in counts)], compared),
    ]
    if result["auc"]:
        keys = ["dataset", "model", "processes", "auc", "logloss", "best_step", "steps"]
        tables.append(markdown([k.replace("_", " ") for k in keys], [[str(r[k]) for k in keys] for r in result["auc"]]))
    return page(result, notes, *tables)


if __name__ == "__main__":
    main()
