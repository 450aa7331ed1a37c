"""`recsys-emb sweep` of three experiments, with the settings of ``sweep.yaml``; writes ``experiments/results/sweep/``.

    RECSYS_EMB_DATA=/path/to/data python experiments/sweep.py                                # everything, hours
    RECSYS_EMB_DATA=/path/to/data python experiments/sweep.py movielens-1m/deepfm --seeds 1  # some of it

A figure that stands in the results is not made again, so a sweep that was stopped goes on; delete its file to start
anew. Processes may share the work as long as no two have the same experiment and seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from run import HERE, SEEDS, prepared

from recsys_emb.config import load_config
from recsys_emb.files import write_bytes, write_text
from recsys_emb.quiet import quiet_torch
from recsys_emb.report.figure import png
from recsys_emb.sweep.methods import chosen_methods
from recsys_emb.sweep.plot import plot
from recsys_emb.sweep.results import points, read_results
from recsys_emb.sweep.run import Sweep
from recsys_emb.sweep.tables import markdown
from recsys_emb.sweep.terminal import tell
from recsys_emb.training.stop import stop_on_signals

EXPERIMENTS = ("movielens-1m/deepfm", "movielens-1m/autoint_small", "synthetic-5m/deepfm")
BUDGETS = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005)
RESULTS = HERE / "results" / "sweep"
RUNS = Path("runs/sweep")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help=f"default: {' '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--methods", nargs="+", default=())
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.experiments) - set(EXPERIMENTS))
    if unknown:
        parser.error(f"unknown experiment {unknown[0]}; there are {', '.join(EXPERIMENTS)}")
    quiet_torch()
    methods = chosen_methods(arguments.methods, HERE / "sweep.yaml")
    with stop_on_signals() as stop:
        for experiment in arguments.experiments or EXPERIMENTS:
            prepared(experiment.split("/")[0])
            name = experiment.replace("/", "-")
            config = load_config(HERE / f"{experiment}.yaml")
            command = f"python experiments/sweep.py {experiment}"
            made = Sweep(config, methods, arguments.budgets, RESULTS, RUNS / name, name, command)
            made.check()
            for seed in arguments.seeds:
                made.seed(seed, tell, stop)
    write_readme(RESULTS)


def write_readme(folder: Path) -> None:
    """``README.md`` and the plots of all sweeps in the folder."""
    lines = [
        "# Memory against AUC",
        "",
        "Made by `python experiments/sweep.py` (with RECSYS_EMB_DATA set). Test AUC, mean ± standard deviation over "
        "the seeds, and the embeddings' bytes relative to the full table. Each method's own options were chosen on the "
        "validation split of one seed, out of at most three (below). [What the figures say](FINDINGS.md).",
    ]
    for name, results in read_results(folder).items():
        lines += ["", f"## {name}, seeds {', '.join(str(r['seed']) for r in results)}", "", *markdown(results), ""]
        for suffix, both in (("", False), ("-with-vocabularies", True)):
            drawn = plot(points(results), name.rpartition("-")[2], both)
            write_bytes(folder / f"{name}{suffix}.png", png(drawn))
            lines += [f"![AUC against bytes]({name}{suffix}.png)"]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
