"""Memory of a whole run by vocabulary size, and the time of an AUC over many predictions.

    python -m benchmarks.scale                                    # 0.1 and 33.8 million ids
    python -m benchmarks.scale --ids 100000 --auc-rows 0

A run trains a few steps, evaluates, writes its checkpoints and loads the best one, in a process of its own. Its largest
resident memory, less what the process held before, stands beside weights plus the optimizer's state. Steps of both
sizes, alternating, are in ``benchmarks.training``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import command, in_child, machine, markdown, page, parser, save, seconds, show, spread
from benchmarks._rows import criteo_rows
from benchmarks._steps import run_config
from recsys_emb.config import RunConfig
from recsys_emb.training import metrics, runtime
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train

GOAL_MEMORY, GOAL_AUC_SECONDS = 1.2, 2.0


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "scale", rounds=3)
    options.add_argument("--model", default="deepfm")
    options.add_argument("--ids", type=int, nargs="+", default=[100_000, 33_800_000])
    options.add_argument("--optimizers", nargs="+", default=["rowwise_adagrad", "adam"])
    options.add_argument("--steps", type=int, default=30)
    options.add_argument("--batch-size", type=int, default=4096)
    options.add_argument("--auc-rows", type=int, default=10_000_000, help="0: leave it out")
    arguments = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = {"command": command("scale", argv), **measure(arguments, Path(folder)), "machine": machine()}
    save(result, arguments.out, table(result))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Bytes of each run, seconds of an AUC."""
    rows = []
    for ids in arguments.ids:
        data = folder / str(ids)
        criteo_rows(data, ids, rows=8 * arguments.batch_size, splits=("train", "valid", "test"))
        for optimizer in arguments.optimizers:
            training = {
                "embedding_optimizer": optimizer,
                "max_steps": arguments.steps,
                "epochs": arguments.steps,
                "eval_every": max(1, arguments.steps // 2),
                "batch_size": arguments.batch_size,
            }
            config = run_config(data, arguments.model, training).model_dump(mode="json")
            with tempfile.TemporaryDirectory(dir=folder) as out:
                run = in_child("benchmarks.scale", {"config": config, "out": f"{out}/run"})
            rows.append({"ids": ids, "optimizer": optimizer, **run})
    auc = None
    if arguments.auc_rows:
        scores = torch.randn(arguments.auc_rows, generator=torch.Generator().manual_seed(1))
        labels = (torch.rand(arguments.auc_rows, generator=torch.Generator().manual_seed(2)) < 0.25).float()
        auc = spread([seconds(lambda: metrics.auc(scores, labels)) for _ in range(arguments.rounds)])
    keys = ("model", "steps", "batch_size", "auc_rows", "rounds")
    return {**{k: getattr(arguments, k) for k in keys}, "rows": rows, "auc_seconds": auc}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """One run: its bytes."""
    config = RunConfig.model_validate(request["config"])
    torch.ones(8).sum()
    runtime.reset_peak_rss()
    before = runtime.peak_rss_bytes()
    report = train(config, Path(request["out"]), Silent())
    held, peak = report["training_bytes"], report["peak_rss_bytes"]
    return {
        "training_bytes": held,
        "peak_rss_bytes": peak,
        "before_bytes": before,
        "ratio": (peak - before) / held,
        "samples_per_second": report["samples_per_second"],
    }


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    notes = f"{result['model']}, batch {result['batch_size']}, {result['steps']} steps."
    if result["auc_seconds"]:
        met = "met" if result["auc_seconds"]["median"] < GOAL_AUC_SECONDS else "missed"
        taken = show(result["auc_seconds"], 2)
        notes += f" AUC of {result['auc_rows']:,} predictions: {taken} s (goal {GOAL_AUC_SECONDS:g}: {met})."
    header = ["ids", "optimizer", "weights and state, MB", "peak beyond imports, MB", f"ratio (goal {GOAL_MEMORY})"]
    lines = [
        [
            f"{r['ids']:,}",
            r["optimizer"],
            f"{r['training_bytes'] / 1e6:,.0f}",
            f"{(r['peak_rss_bytes'] - r['before_bytes']) / 1e6:,.0f}",
            f"{r['ratio']:.2f}",
        ]
        for r in result["rows"]
    ]
    return page(result, notes, markdown(header, lines))


if __name__ == "__main__":
    main()
