"""Every embedding backend and baseline at every memory budget, over seeds; writes ``experiments/results/sweep/``.

    RECSYS_EMB_DATA=/path/to/data python experiments/sweep.py                                # everything, hours
    RECSYS_EMB_DATA=/path/to/data python experiments/sweep.py movielens-1m/deepfm --seeds 1  # some of it

A figure that stands in the results is not made again, so a sweep that was stopped goes on; delete its file to start
anew. Processes may share the work as long as no two have the same experiment and seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from run import HERE, SEEDS, prepared

from recsys_emb.config import load_config
from recsys_emb.errors import BudgetTooSmall
from recsys_emb.report.figure import png
from recsys_emb.report.plots import memory_auc
from recsys_emb.serving import write_artifact
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.runtime import environment, quiet_torch

EXPERIMENTS = ("movielens-1m/deepfm", "movielens-1m/autoint_small", "synthetic-5m/deepfm")
BUDGETS = (0.5, 0.25, 0.1, 0.02, 0.01)
RESULTS = HERE / "results" / "sweep"
RUNS = Path("runs/sweep")
KEPT = ("auc", "valid_auc", "logloss", "serving_bytes", "ratio", "training_bytes", "epochs", "steps", "train_seconds")

BACKENDS = {
    "hash": {},
    "multi_hash": {},
    "qr": {},
    "unified": {},
    "mixed_dim": {"by": "popularity"},
    "mixed_dim by size": {"by": "size"},
    "low_rank": {},
    "optembed": {},
}
L2_SCALE = {"qr": 0.1}
"""Of ``training.l2_embedding``. qr multiplies its rows, and at vectors of standard deviation s the same L2 on two
factors acts 1 / s times as strongly as on the product, which keeps small tables at zero. Chosen for every method out of
1 and 0.1 (qr: and 0.01) by validation AUC on MovieLens-1M at a budget of 1/10; all others are best at 1."""
SIZED_AFTER_TRAINING = ("prune", "svd", "quantized_svd")
FIXED_AFTER_TRAINING = ("fp16", "int8", "int4", "drop_unseen")


@dataclass(frozen=True)
class Point:
    """One figure of the plot: a training, or a trained full table made smaller (``after``)."""

    method: str
    budget: float | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    after: str | None = None

    @property
    def folder(self) -> str:
        return self.method.replace(" ", "_") + ("" if self.budget is None else f"-{self.budget:g}")


def points(dim: int, l2: float) -> Iterator[Point]:
    """The full table first, since others are made of it; ``dim`` is its width, ``l2`` that of its rows."""
    yield Point("full")
    for method in FIXED_AFTER_TRAINING:
        yield Point(method, after=method)
    for budget in BUDGETS:
        for method in SIZED_AFTER_TRAINING:
            yield Point(method, budget, after=method)
        if width := int(dim * budget):
            yield Point("full, smaller D", budget, {"model.embedding_dim": width})
        for method, options in BACKENDS.items():
            yield Point(
                method,
                budget,
                {
                    "embedding.backend": method.split()[0],
                    "embedding.budget": budget,
                    "training.l2_embedding": l2 * L2_SCALE.get(method, 1),
                    **{f"embedding.options.{k}": v for k, v in options.items()},
                },
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help=f"default: {' '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.experiments) - set(EXPERIMENTS))
    if unknown:
        parser.error(f"unknown experiment {unknown[0]}; there are {', '.join(EXPERIMENTS)}")
    quiet_torch()
    for experiment in arguments.experiments or EXPERIMENTS:
        prepared(experiment.split("/")[0])
        for seed in arguments.seeds:
            sweep(experiment, seed, arguments.budgets)
    write_tables()


def sweep(experiment: str, seed: int, budgets: list[float]) -> None:
    """Adds what is missing to one experiment's and seed's results."""
    name = experiment.replace("/", "-")
    target = RESULTS / f"{name}-{seed}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = f"python experiments/sweep.py {experiment} --seeds {seed}"
    result = json.loads(target.read_text()) if target.exists() else {"command": command, "seed": seed, "rows": []}
    present = {(row["method"], row["budget"]) for row in result["rows"]}
    config = load_config(HERE / f"{experiment}.yaml")
    folder = RUNS / name / str(seed)
    for point in points(config.model.embedding_dim, config.training.l2_embedding):
        if (point.method, point.budget) in present or point.budget not in (None, *budgets):
            continue
        row = {"method": point.method, "budget": point.budget, **figures(experiment, point, seed, folder)}
        print(f"{experiment} seed {seed}: {point.folder} {row.get('auc') or row['error']}", file=sys.stderr, flush=True)
        result["rows"].append(row)
        machine = environment()
        result["machine"] = {k: machine[k] for k in ("processor", "cpus", "packages")}
        target.write_text(json.dumps(result, indent=1) + "\n")


def figures(experiment: str, point: Point, seed: int, folder: Path) -> dict[str, Any]:
    """A point's figures, or why the method cannot be that small."""
    out = folder / point.folder
    try:
        if point.after:
            full = load_run(trained(experiment, Point("full"), seed, folder / "full"))
            shutil.rmtree(out, ignore_errors=True)
            report = write_artifact(full, out, point.after, point.budget)
        else:
            report = load_run(trained(experiment, point, seed, out)).report
    except BudgetTooSmall as error:
        return {"error": str(error)}
    if point.method != "full":  # what is made of the full table needs its weights
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
    return {key: report[key] for key in KEPT if key in report}


def trained(experiment: str, point: Point, seed: int, out: Path) -> Path:
    """The folder of a finished run."""
    overrides = [f"seed={seed}", *(f"{key}={value}" for key, value in point.overrides.items())]
    train(load_config(HERE / f"{experiment}.yaml", overrides), out, Silent(), resume=True)
    return out


def write_tables() -> None:
    """``results/sweep/README.md`` and plots, from the JSON files beside it."""
    lines = [
        "# Memory against AUC",
        "",
        "Made by `python experiments/sweep.py` (with RECSYS_EMB_DATA set). Test AUC, mean ± standard deviation over "
        "the seeds, and the bytes served relative to the full table; settings were chosen on the validation split. "
        "[What the figures say](FINDINGS.md).",
    ]
    for experiment in EXPERIMENTS:
        name = experiment.replace("/", "-")
        results = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{name}-*.json"))]
        if not results:
            continue
        lines += ["", f"## {experiment}, seeds {', '.join(str(r['seed']) for r in results)}", ""]
        rows = [row for result in results for row in relative(result["rows"])]
        plot(name, rows)
        lines += [*table(rows), "", f"![AUC against bytes]({name}.png)"]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n")


def relative(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With ``ratio`` to the full table of the experiment's width: a smaller D is not its own measure."""
    whole = next(r["serving_bytes"] for r in rows if r["method"] == "full")
    return [{**r, "ratio": r["serving_bytes"] / whole} if "serving_bytes" in r else r for r in rows]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Markdown: a line a method, a column a budget."""
    budgets = sorted({r["budget"] for r in rows if r["budget"] is not None}, reverse=True)
    methods = list(dict.fromkeys(r["method"] for r in rows))
    seeds = sum(r["method"] == "full" for r in rows)
    lines = [
        "| method | own size | " + " | ".join(f"1/{1 / b:g}" for b in budgets) + " |",
        "|---|" + "---|" * (1 + len(budgets)),
    ]
    for method in methods:
        cells = [
            cell([r for r in rows if r["method"] == method and r["budget"] == budget], seeds)
            for budget in (None, *budgets)
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def cell(rows: list[dict[str, Any]], seeds: int) -> str:
    """``AUC ± spread (ratio)`` of one method and budget, and how many seeds where not all have been run."""
    aucs = [r["auc"] for r in rows if "auc" in r]
    if not aucs:
        return "out of reach" if rows else "-"
    spread = f" ± {stdev(aucs):.4f}" if len(aucs) > 1 else ""
    some = f", {len(aucs)} of {seeds} seeds" if len(aucs) < seeds else ""
    return f"{mean(aucs):.4f}{spread} ({mean(r['ratio'] for r in rows):.3f}{some})"


def plot(name: str, rows: list[dict[str, Any]]) -> None:
    """The plot of ``recsys-emb compare``, of an experiment's figures."""
    groups: dict[tuple[str, float | None], list[dict[str, Any]]] = {}
    for row in rows:
        if "auc" in row:
            groups.setdefault((row["method"], row["budget"]), []).append(row)
    means = [
        {
            "model": name.rsplit("-", 1)[1],
            "backend": method,
            "serving_bytes": mean(r["serving_bytes"] for r in group),
            "auc": mean(r["auc"] for r in group),
            "auc_std": stdev(r["auc"] for r in group) if len(group) > 1 else None,
        }
        for (method, _), group in groups.items()
    ]
    (RESULTS / f"{name}.png").write_bytes(png(memory_auc(means)))


if __name__ == "__main__":
    main()
