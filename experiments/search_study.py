"""Does a search of widths find anything? Searched widths against rules, OptEmbed and random search at equal bytes.

    RECSYS_EMB_DATA=/path/to/data python experiments/search_study.py                           # everything
    RECSYS_EMB_DATA=/path/to/data python experiments/search_study.py synthetic-noise --seeds 1 # some of it

Writes ``experiments/results/search/``. A figure that stands there is not made again and runs under ``runs/search/``
are continued, so a study that was stopped goes on; delete its file to start anew. Processes may share the work as long
as no two have the same dataset and seed.

``synthetic-noise`` has 26 categorical fields, of which the first ten alone act on the click.

Sized for an hour and a half of one core. The model is a small DCNv2 with D = 32, which on MovieLens-1M reaches the AUC
of the large one. Its embedding has no first-order column, which at 1/20 would take most of what there is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import optuna
import polars as pl
import yaml
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from run import DATASETS, HERE, SEEDS, prepared
from scipy.stats import spearmanr

from recsys_emb.config import load_config
from recsys_emb.errors import BudgetTooSmall
from recsys_emb.quiet import quiet_torch
from recsys_emb.search.config import load_search
from recsys_emb.search.run import run_search
from recsys_emb.search.study import JOURNAL
from recsys_emb.search.supernet import Supernet
from recsys_emb.search.terminal import quiet
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import group_of, train
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.runtime import environment

# dataset -> the YAML whose training settings it has, and what is set besides. A learning rate that falls to zero over
# fixed epochs is the cheapest way to figures with little noise: all runs have learned what there is by its end.
LINEAR = ["training.lr_schedule=linear", "training.min_delta=0"]
STUDIES = {
    "movielens-1m": (
        "movielens-1m/dcnv2.yaml",
        [*LINEAR, "training.epochs=8", "training.learning_rate=1e-2", "training.eval_every=49"],
    ),
    "synthetic-noise": (
        "synthetic/deepfm.yaml",
        [*LINEAR, "training.epochs=3", "training.learning_rate=4e-3", "training.eval_every=20"],
    ),
}
DIM = 32
MODEL = {"name": "dcnv2", "embedding_dim": DIM, "low_rank": 16, "cross_layers": 2, "hidden": [64, 32]}
WIDTHS = (0, 1, 2, 4, 8, 16, 32)
BUDGETS = (0.25, 0.05)
UNPRESSED = 1.0
"""A budget that every candidate meets: are noise fields left out for their harm alone?"""
RETRAINED = 2
RANKED = 6
"""Candidates, from the worst to the best score, that are trained to see whether scores rank them; with one seed."""
RESULTS = HERE / "results" / "search"
RUNS = Path("runs/search")
KEPT = ("auc", "valid_auc", "logloss", "serving_bytes", "train_seconds")

SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed),
    "nsga2": lambda seed: NSGAIISampler(seed=seed, population_size=20),  # as many as OptEmbed's generations have
    "random": lambda seed: RandomSampler(seed=seed),
}
SEARCHES = ("tpe", "random")
RULES: dict[str, dict[str, Any]] = {
    "rest to small tables": {"backend": "field_dim"},
    "mixed_dim": {"backend": "mixed_dim"},
    "optembed": {"backend": "optembed"},
}
"""Without a search of ours. Uniform widths in full tables are added, of which the first rule is the extension."""

Row = dict[str, Any]
Point = tuple[str, float | None, Callable[[], Row]]
"""Method, budget, and what gives the figures."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", help=f"default: {' '.join(STUDIES)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--trials", type=int, default=200, help="candidates that a search scores (default: 200)")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.datasets) - set(STUDIES))
    if unknown:
        parser.error(f"unknown dataset {unknown[0]}; there are {', '.join(STUDIES)}")
    quiet_torch()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    datasets = arguments.datasets or list(STUDIES)
    for dataset in datasets:
        prepared(dataset)
    for seed in arguments.seeds:
        for dataset in datasets:
            study(dataset, seed, points(dataset, seed, arguments.budgets, arguments.trials), arguments.trials)
    if SEEDS[0] in arguments.seeds:
        for dataset in datasets:
            study(dataset, SEEDS[0], rankings(dataset, SEEDS[0], arguments.budgets), arguments.trials)
    write_tables()


def study(dataset: str, seed: int, points: Iterable[Point], trials: int) -> None:
    """Adds what is missing to the results of one dataset and seed."""
    target = RESULTS / f"{dataset}-{seed}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = f"python experiments/search_study.py {dataset} --seeds {seed} --trials {trials}"
    result = json.loads(target.read_text()) if target.exists() else {"command": command, "seed": seed, "rows": []}
    present = {(row["method"], row["budget"]) for row in result["rows"]}
    for method, budget, make in points:
        if (method, budget) in present:
            continue
        row = {"method": method, "budget": budget, **make()}
        shown = row.get("auc") or row.get("scores") or row.get("error")
        print(f"{dataset} seed {seed}, {method} at {budget}: {shown}", file=sys.stderr, flush=True)
        result["rows"].append(row)
        machine = environment()
        result["machine"] = {k: machine[k] for k in ("processor", "cpus", "packages")}
        target.write_text(json.dumps(result, indent=1) + "\n")


def points(dataset: str, seed: int, budgets: Sequence[float], trials: int) -> Iterator[Point]:
    """All but the rank correlations."""
    full = {"embedding": {"backend": "full"}}
    yield "full", None, lambda: trained(dataset, seed, "full", full)
    narrower = full | {"model.embedding_dim": DIM - 1}  # a control: being narrow alone should neither gain nor lose
    yield "full, one column narrower", None, lambda: trained(dataset, seed, "narrower", narrower)
    for b in budgets:
        narrow = full | {"model.embedding_dim": max(1, int(b * DIM))}
        yield "uniform", b, lambda b=b, narrow=narrow: trained(dataset, seed, f"uniform-{b:g}", narrow)
        for method, embedding in RULES.items():
            folder = f"{method.replace(' ', '_')}-{b:g}"
            sized = {"embedding": {**embedding, "budget": b}}
            yield method, b, lambda folder=folder, sized=sized: trained(dataset, seed, folder, sized)
        for name in SEARCHES:
            yield f"search, {name}", b, lambda b=b, name=name: searched(dataset, seed, b, name, trials)
        yield "optembed's supernet", b, lambda b=b: same_supernet(dataset, seed, b)
    if dataset == "synthetic-noise":
        for name in SEARCHES:
            yield f"search, {name}", UNPRESSED, lambda name=name: searched(dataset, seed, UNPRESSED, name, trials)


def rankings(dataset: str, seed: int, budgets: Sequence[float]) -> Iterator[Point]:
    """The rank correlations."""
    for b in budgets:
        yield "rank correlation", b, lambda b=b: ranked(dataset, seed, b)


def base_of(dataset: str) -> Path:
    return HERE / STUDIES[dataset][0]


def overrides(dataset: str, seed: int) -> list[str]:
    return [f"data.path=prepared/{dataset}", f"model={json.dumps(MODEL)}", f"seed={seed}", *STUDIES[dataset][1]]


def trained(dataset: str, seed: int, folder: str, keys: dict[str, Any]) -> Row:
    """The figures of one run, or why its method cannot be that small."""
    own = [f"{key}={json.dumps(value)}" for key, value in keys.items()]
    config = load_config(base_of(dataset), [*overrides(dataset, seed), *own])
    try:
        report = train(config, RUNS / dataset / str(seed) / folder, Silent(), resume=True)
    except BudgetTooSmall as error:
        return {"error": str(error)}
    return figures(report, report["full_bytes"] * DIM // config.model.embedding_dim)


def figures(report: Row, full_bytes: int) -> Row:
    """What is kept of a report; ``ratio`` to the full tables at D = ``DIM``."""
    return {**{key: report[key] for key in KEPT}, "ratio": report["serving_bytes"] / full_bytes}


# -- searches ---------------------------------------------------------------------------------------------------------


def searched(dataset: str, seed: int, budget: float, name: str, trials: int) -> Row:
    """The best of the ``RETRAINED`` best of ``trials`` candidates that fit, scored on one supernet for all samplers."""
    folder = RUNS / dataset / str(seed)
    out = folder / f"search-{name}-{budget:g}"
    base = load_config(base_of(dataset), overrides(dataset, seed))
    Supernet.train(base, folder / "supernet", Silent(), resume=True, choices=WIDTHS)
    out.mkdir(parents=True, exist_ok=True)
    (out / JOURNAL).touch()  # so that the search is always continued, from nothing the first time
    if not (out / "supernet").exists():
        (out / "supernet").symlink_to((folder / "supernet").resolve())
    path = write_search(out / "search.yaml", dataset, seed, budget, name)
    summary = run_search(load_search(path), out, trials, Silent(), quiet, resume=True)
    winner = summary["winner"]
    report = load_run(out / winner["run"]).report
    return {
        **figures(report, report["full_bytes"]),
        "trials": summary["trials"],
        "states": summary["states"],
        "scored_per_minute": scored_per_minute(out),
        "widths": winner["widths"],
    }


def scored_per_minute(out: Path) -> float:
    """Candidates that the supernet scored a minute, the time for those that did not fit or came twice included."""
    found = pl.read_parquet(out / "candidates.parquet")
    return 60 * len(found.filter(pl.col("state") == "complete")) / found["seconds"].sum()


def write_search(path: Path, dataset: str, seed: int, budget: float, name: str) -> Path:
    """The search's YAML. A table's widths that break the budget on their own are left out, or random search would draw
    little else."""
    config = load_config(base_of(dataset), overrides(dataset, seed))
    spec = group_of(config, config.data.open().schema)
    most = int(budget * spec.full_bytes)
    space = {
        f"embedding.options.widths.{t.name}": {"choices": [w for w in WIDTHS if 4 * w * t.num_embeddings <= most]}
        for t in spec.tables
    }
    tree = {
        "base": str(base_of(dataset).resolve()),
        "set": [*overrides(dataset, seed), "embedding.backend=field_dim"],
        "budget": budget,
        "scoring": "supernet",
        "sampler": name,
        "seed": seed,
        "retrain": RETRAINED,
        "baselines": [],
        "space": space,
    }
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def same_supernet(dataset: str, seed: int, budget: float) -> Row:
    """Best score on OptEmbed's supernet, rows and budget by its own search, and by Optuna in as many evaluations.

    Each begins with all tables at D, D/2, D/4 ... columns, as OptEmbed's does.
    """
    run = load_run(RUNS / dataset / str(seed) / f"optembed-{budget:g}")
    own = [m["auc"] for m in run.metrics() if m["event"] == "search"]
    supernet = Supernet.open(run.path, rows=run.config.embedding.options.model_dump()["search_rows"])
    most = max(supernet.choices)

    def score(trial: optuna.Trial) -> float:
        return supernet.score({t: trial.suggest_int(t, 1, most) for t in supernet.tables})

    scores = {"optembed": max(own)}
    for name, sampler in SAMPLERS.items():
        search = optuna.create_study(direction="maximize", sampler=sampler(seed))
        for k in range(most.bit_length()):
            search.enqueue_trial(dict.fromkeys(supernet.tables, most >> k))
        search.optimize(score, n_trials=len(own))
        scores[name] = search.best_value
    return {"evaluations": len(own), "scores": scores}


def ranked(dataset: str, seed: int, budget: float) -> Row:
    """Scores and trained AUCs of ``RANKED`` candidates of the random search, evenly along their scores."""
    out = RUNS / dataset / str(seed)
    found = pl.read_parquet(out / f"search-random-{budget:g}" / "candidates.parquet")
    found = found.filter(pl.col("state") == "complete").sort("score")
    pairs = []
    for i in dict.fromkeys(round(k * (len(found) - 1) / (RANKED - 1)) for k in range(RANKED)):
        row = found.row(i, named=True)
        widths = {k.rsplit(".", 1)[1]: v for k, v in row.items() if k.startswith("param:")}
        embedding = {"backend": "field_dim", "options": {"widths": widths}}
        report = trained(dataset, seed, f"ranked-{budget:g}-{row['number']}", {"embedding": embedding})
        pairs.append((row["score"], report["valid_auc"]))
    return {"pairs": pairs, "spearman": float(spearmanr(*zip(*pairs)).statistic)}


# -- tables -----------------------------------------------------------------------------------------------------------


def write_tables() -> None:
    """``results/search/README.md`` from the JSON files beside it and what ``findings.md`` says of them."""
    findings = RESULTS / "findings.md"
    lines = [
        "# Does a search of widths find anything?",
        "",
        *([findings.read_text().strip(), ""] if findings.exists() else []),
        "## How",
        "",
        "Made by `python experiments/search_study.py` (with RECSYS_EMB_DATA set): a small DCNv2 with D = 32 and no "
        "first-order column. Test AUC, mean ± standard deviation over the seeds, and the bytes served relative to the "
        "full table. A search scores candidates on a supernet (`trials` in the JSON files: how many) and trains the "
        f"{RETRAINED} best from scratch; the validation split decides. Random search is the control. OptEmbed trains "
        f"twice, its supernet and the form that it found; a search {1 + RETRAINED} times, of which one, the supernet, "
        "serves all searches of a seed. Full tables one column narrower show what being narrow does by itself.",
    ]
    for dataset in STUDIES:
        results = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{dataset}-[0-9]*.json"))]
        if not results:
            continue
        rows = [row for result in results for row in result["rows"]]
        lines += ["", f"## {dataset}, seeds {', '.join(str(r['seed']) for r in results)}", "", *auc_table(rows)]
        lines += ["", *supernet_table(rows), "", *correlation_table(rows)]
        if dataset == "synthetic-noise":
            lines += ["", *noise_table(rows)]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n")


def auc_table(rows: list[Row]) -> list[str]:
    """A line a method, a column a budget."""
    rows = [r for r in rows if "auc" in r or "error" in r]
    return grid("method", rows, lambda r: r["method"], auc_cell)


def auc_cell(rows: list[Row]) -> str:
    found = [r for r in rows if "auc" in r]
    if not found:
        return "out of reach" if rows else "-"
    return f"{spread([r['auc'] for r in found])} ({mean(r['ratio'] for r in found):.3f})"


def supernet_table(rows: list[Row]) -> list[str]:
    """Best validation score that each search found on OptEmbed's supernet."""
    flat = [
        {"budget": r["budget"], "by": by, "score": score} for r in rows for by, score in r.get("scores", {}).items()
    ]
    evaluations = sorted({r["evaluations"] for r in rows if "evaluations" in r})
    if not flat:
        return []
    counts = f"{evaluations[0]} to {evaluations[-1]}"
    title = f"best of {counts} evaluations on OptEmbed's supernet (validation AUC)"
    return grid(title, flat, lambda r: r["by"], lambda found: spread([r["score"] for r in found]) if found else "-")


def correlation_table(rows: list[Row]) -> list[str]:
    """Whether supernet scores rank candidates as training does."""
    found = [r for r in rows if "spearman" in r]
    title = "Spearman rank correlation of supernet score and trained validation AUC"

    def cell(rows: list[Row]) -> str:
        return f"{mean(r['spearman'] for r in rows):.2f} over {len(rows[0]['pairs'])} candidates" if rows else "-"

    return grid(title, found, lambda r: "random candidates", cell) if found else []


def noise_table(rows: list[Row]) -> list[str]:
    """How many of the fields that carry no signal got width 0 or 1."""
    signals = DATASETS["synthetic-noise"][3]["signal_fields"]

    def cell(found: list[Row]) -> str:
        narrow = [[w <= 1 for t, w in r["widths"].items() if int(t.removeprefix("C")) > signals] for r in found]
        return f"{mean(sum(n) for n in narrow):.1f} of {len(narrow[0])}" if narrow else "-"

    return grid("noise fields at width 0 or 1", [r for r in rows if "widths" in r], lambda r: r["method"], cell)


def grid(title: str, rows: list[Row], line_of: Callable[[Row], str], cell: Callable[[list[Row]], str]) -> list[str]:
    """Markdown: a line for each value of ``line_of``, a column for each budget."""
    budgets = sorted({r["budget"] for r in rows}, key=lambda b: -(b or 1))
    lines = [f"| {title} | " + " | ".join("full" if b is None else f"1/{1 / b:g}" for b in budgets) + " |"]
    lines.append("|---|" + "---|" * len(budgets))
    for name in dict.fromkeys(map(line_of, rows)):
        cells = [cell([r for r in rows if line_of(r) == name and r["budget"] == b]) for b in budgets]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
