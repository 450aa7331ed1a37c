"""Adam with catch-up against dense Adam, over seeds; writes ``experiments/results/dense-adam.md`` and ``.json``.

    RECSYS_EMB_DATA=/path/to/data python experiments/dense_adam.py                       # all of EXPERIMENTS
    RECSYS_EMB_DATA=/path/to/data python experiments/dense_adam.py movielens-1m/deepfm   # one, the others stay

The two differ in ``training.embedding_optimizer`` alone: dense Adam walks whole tables at every step, ours touches the
rows of the batch. Differences are paired: of two runs with the same seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from run import HERE, RESULTS, SEEDS, prepared

from recsys_emb.config import load_config
from recsys_emb.files import read_json
from recsys_emb.quiet import quiet_torch
from recsys_emb.training.progress import TerminalReporter
from recsys_emb.training.run import train
from recsys_emb.training.runtime import environment

EXPERIMENTS = ("movielens-1m/deepfm", "amazon-beauty/din")
OPTIMIZERS = ("adam", "dense_adam")
FIGURES = RESULTS / "dense-adam.json"
KEPT = ("seed", "auc", "valid_auc", "logloss", "epochs", "precision")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    quiet_torch()
    figures = read_json(FIGURES) if FIGURES.exists() else {}
    for name in arguments.experiments:
        prepared(name.split("/")[0])
        figures[name] = {o: [run(name, o, seed) for seed in arguments.seeds] for o in OPTIMIZERS}
        figures["machine"] = environment()["processor"]
        FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
        FIGURES.with_suffix(".md").write_text(table(figures))


def run(name: str, optimizer: str, seed: int) -> dict[str, Any]:
    """One report's figures."""
    config = load_config(HERE / f"{name}.yaml", [f"seed={seed}", f"training.embedding_optimizer={optimizer}"])
    out = Path("runs/dense-adam") / f"{name.replace('/', '-')}-{optimizer}-{seed}"
    with TerminalReporter(f"{name} {optimizer} seed {seed}") as reporter:
        report = train(config, out, reporter, resume=True)
    return {key: report[key] for key in KEPT}


def table(figures: dict[str, Any]) -> str:
    """The figures in Markdown."""
    lines = [
        "# Adam with catch-up against dense Adam",
        "",
        "Made by `python experiments/dense_adam.py` (with RECSYS_EMB_DATA set); mean ± standard deviation over the "
        "seeds. The difference is adam - dense_adam of the same seed.",
        "",
        "| experiment | seeds | adam, test AUC | dense_adam | difference | epochs |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_optimizer in figures.items():
        if name == "machine":
            continue
        ours, dense = (by_optimizer[o] for o in OPTIMIZERS)
        seeds = ", ".join(str(r["seed"]) for r in ours)
        auc = [spread([r["auc"] for r in reports]) for reports in (ours, dense)]
        difference = spread([a["auc"] - b["auc"] for a, b in zip(ours, dense)])
        epochs = " / ".join(f"{mean(r['epochs'] for r in reports):.1f}" for reports in (ours, dense))
        lines.append(f"| {name} | {seeds} | {auc[0]} | {auc[1]} | {difference} | {epochs} |")
    return "\n".join([*lines, "", f"Machine: {figures['machine']}.", ""])


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f} ± {stdev(values) if len(values) > 1 else 0:.4f}"


if __name__ == "__main__":
    main()
