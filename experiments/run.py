"""Trains the experiments of this folder over seeds and writes ``experiments/results/``.

    RECSYS_EMB_DATA=/path/to/data python experiments/run.py                       # everything
    RECSYS_EMB_DATA=/path/to/data python experiments/run.py movielens-1m/autoint  # some of it

Datasets are prepared once under ``prepared/``, runs are kept under ``runs/experiments/`` and continued where they
stopped. ``datasets/*/README.md`` says where the data comes from. The validation split decided every setting in the
YAML files; the test split is read for the reported numbers only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from recsys_emb.config import load_config
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.quiet import quiet_torch
from recsys_emb.training.progress import TerminalReporter
from recsys_emb.training.run import train
from recsys_emb.training.runtime import environment

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SEEDS = (1, 2, 3)
AVERAGED = ("auc", "logloss", "gauc", "valid_auc", "train_seconds", "samples_per_second", "epochs")

# folder of experiments -> source, file below RECSYS_EMB_DATA, schema, options
DATASETS: dict[str, tuple[str, str | None, str | None, dict[str, Any]]] = {
    "movielens-1m": ("table", "ml-1m/ctr.parquet", "datasets/movielens-1m/ctr.yaml", {}),
    "amazon-beauty": ("table", "amazon-beauty/ctr.parquet", "datasets/amazon/ctr.yaml", {}),
    "synthetic": ("synthetic", None, None, {"rows": 1_000_000, "ids": 100_000, "seed": 1}),
    "synthetic-noise": ("synthetic", None, None, {"rows": 200_000, "ids": 20_000, "seed": 1, "signal_fields": 10}),
    "synthetic-5m": ("synthetic", None, None, {"rows": 2_000_000, "ids": 5_000_000, "seed": 1}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="DATASET/MODEL, e.g. movielens-1m/autoint; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    quiet_torch()
    known = sorted(f"{p.parent.name}/{p.stem}" for d in DATASETS for p in (HERE / d).glob("*.yaml"))
    chosen = arguments.experiments or known
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        parser.error(f"unknown experiment {unknown[0]}; there are {', '.join(known)}")
    for name in chosen:
        prepared(name.split("/")[0])
        reports = [run(name, seed) for seed in arguments.seeds]
        result = {"experiment": name, "command": f"python experiments/run.py {name}", **summary(reports)}
        target = RESULTS / f"{name.replace('/', '-')}.json"
        target.write_text(json.dumps(result, indent=2) + "\n")
        print(
            f"{name}: test AUC {result['auc']['mean']:.4f} +- {result['auc']['std']:.4f} -> {target}", file=sys.stderr
        )
    write_table()


def prepared(dataset: str) -> Path:
    """The prepared folder of a dataset, made when it is not there."""
    out = Path("prepared") / dataset
    if not out.exists():
        source, file, schema, options = DATASETS[dataset]
        path = None
        if file is not None:
            root = os.environ.get("RECSYS_EMB_DATA")
            if root is None:
                sys.exit(f"{dataset}: set RECSYS_EMB_DATA to the folder that holds {file}")
            path = Path(root) / file
        prepare(make_source(source, path, Path(schema) if schema else None, options), out, name=dataset)
    return out


def run(name: str, seed: int) -> dict[str, Any]:
    """One seed's report."""
    config = load_config(HERE / f"{name}.yaml", [f"seed={seed}"])
    with TerminalReporter(f"{name} seed {seed}") as reporter:
        return train(config, Path("runs/experiments") / f"{name.replace('/', '-')}-{seed}", reporter, resume=True)


def summary(reports: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and sample standard deviations over seeds, and what was the same in all."""
    result: dict[str, Any] = {"seeds": [r["seed"] for r in reports]}
    for key in AVERAGED:
        values = [r[key] for r in reports]
        if None not in values:
            spread = stdev(values) if len(values) > 1 else 0.0
            result[key] = {"mean": mean(values), "std": spread, "values": values}
    same = ("model", "backend", "dataset", "serving_bytes", "full_bytes", "training_bytes", "precision", "bayes_auc")
    result |= {key: reports[0][key] for key in same if reports[0].get(key) is not None}
    machine = environment()
    return result | {"machine": {k: machine[k] for k in ("processor", "cpus", "packages")}}


def write_table() -> None:
    """``results/README.md`` from the JSON files beside it."""
    rows = [json.loads(p.read_text()) for p in sorted(RESULTS.glob("*.json"))]
    rows = [r for r in rows if "experiment" in r]
    lines = [
        "# Results",
        "",
        "Made by `python experiments/run.py` (with RECSYS_EMB_DATA set); mean ± standard deviation over the seeds. "
        "AUC and logloss are of the test split, read once with the weights that were best on the validation split.",
        "",
        "| experiment | seeds | test AUC | test logloss | GAUC | valid AUC | epochs | train, s | rows/s | MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        gauc = f"{r['gauc']['mean']:.4f}" if "gauc" in r else "-"
        bayes = f" (Bayes {r['bayes_auc']:.4f})" if r.get("bayes_auc") is not None else ""
        auc, loss = (f"{r[k]['mean']:.4f} ± {r[k]['std']:.4f}" for k in ("auc", "logloss"))
        lines.append(
            f"| {r['experiment']} | {', '.join(map(str, r['seeds']))} | {auc}{bayes} | {loss} "
            f"| {gauc} | {r['valid_auc']['mean']:.4f} | {r['epochs']['mean']:.1f} | {r['train_seconds']['mean']:.0f} "
            f"| {r['samples_per_second']['mean']:,.0f} | {r['serving_bytes'] / 1e6:.2f} |"
        )
    if rows:
        m = rows[-1]["machine"]
        lines += ["", f"Machine: {m['processor']}, {m['cpus']} CPUs, torch {m['packages']['torch']}."]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
