"""Every embedding backend and baseline at every memory budget, over seeds; writes ``experiments/results/sweep/``.

    RECSYS_EMB_DATA=/path/to/data python experiments/sweep.py                                # everything, hours
    RECSYS_EMB_DATA=/path/to/data python experiments/sweep.py movielens-1m/deepfm --seeds 1  # some of it

A method's own options are chosen first: of the few in ``sweep_methods.py`` those of the highest validation AUC on seed
1 at a budget of 1/10, or the next that the method can meet. All trials stand in the results.

A figure that stands in the results is not made again, so a sweep that was stopped goes on; delete its file to start
anew. Processes may share the work as long as no two have the same experiment and seed: what a run of one seed needs of
another's is trained by whoever comes first, the others wait for it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from run import HERE, SEEDS, prepared
from sweep_methods import FULL, METHODS, Choice, Method
from sweep_tables import EXPERIMENTS, RESULTS, write_tables

from recsys_emb.config import RunConfig, load_config
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.errors import BudgetTooSmall
from recsys_emb.files import read_json
from recsys_emb.quiet import quiet_torch
from recsys_emb.serving import load_artifact, write_artifact
from recsys_emb.serving.evaluate import evaluate_artifact
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import group_of, train
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.runtime import environment

BUDGETS = (0.5, 0.25, 0.1, 0.05, 0.02, 0.01, 0.005)
TRIAL_SEED, TRIAL_BUDGET = SEEDS[0], 0.1
RUNS = Path("runs/sweep")
KEPT = ("auc", "valid_auc", "logloss", "serving_bytes", "ratio", "training_bytes", "epochs", "steps", "train_seconds")


@dataclass(frozen=True)
class Point:
    """One figure of the plot: a training, or a trained full table made smaller."""

    experiment: str
    seed: int
    method: Method
    budget: float | None
    choice: Choice

    @property
    def folder(self) -> Path:
        """Where its run or artifact is; the same for a trial and the figure that it becomes."""
        number = self.method.choices.index(self.choice)
        name = self.method.name.replace(",", "").replace(" ", "_")
        budget = "" if self.budget is None else f"-{self.budget:g}"
        return RUNS / name_of(self.experiment) / str(self.seed) / f"{name}{budget}" / f"choice-{number}"


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


def name_of(experiment: str) -> str:
    return experiment.replace("/", "-")


def sweep(experiment: str, seed: int, budgets: Sequence[float], methods: Sequence[Method] = METHODS) -> None:
    """Adds what is missing to one experiment's and seed's results, one figure after another."""
    target = RESULTS / f"{name_of(experiment)}-{seed}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    command = f"python experiments/sweep.py {experiment} --seeds {seed}"
    result = {"command": command, "seed": seed, "trials": {}, "rows": []}
    if target.exists():
        result = json.loads(target.read_text())
    present = {(row["method"], row["budget"]) for row in result["rows"]}
    for method in methods:
        missing = [b for b in points(method, budgets) if (method.name, b) not in present]
        if missing and method.name not in result["trials"] and len(method.choices) > 1:
            result["trials"][method.name] = trials(experiment, method)
            write(target, result)
        for budget in missing:
            point = Point(experiment, seed, method, budget, best(method, result["trials"].get(method.name, [])))
            row = {"method": method.name, "budget": budget, **asdict(point.choice), **figures(point)}
            print(
                f"{experiment} seed {seed}: {method.name} at {budget}: {row.get('auc', row.get('error'))}",
                file=sys.stderr,
            )
            result["rows"].append(row)
            write(target, result)


def points(method: Method, budgets: Sequence[float]) -> Iterator[float | None]:
    """The budgets of a method; None stands for its own size."""
    if method.own_size:
        yield None
    if method.budgets:
        yield from budgets


def write(target: Path, result: dict[str, Any]) -> None:
    machine = environment()
    result["machine"] = {k: machine[k] for k in ("processor", "cpus", "packages")}
    target.write_text(json.dumps(result, indent=1) + "\n")


# -- options ----------------------------------------------------------------------------------------------------------


def trials(experiment: str, method: Method) -> list[dict[str, Any]]:
    """Validation AUC of each choice of options, or why there is none; as another seed's results have it, or made."""
    for file in sorted(RESULTS.glob(f"{name_of(experiment)}-[0-9]*.json")):
        known = json.loads(file.read_text())["trials"]
        if method.name in known:
            return list(known[method.name])
    rows: list[dict[str, Any]] = []
    for budget in sorted(b for b in BUDGETS if b >= TRIAL_BUDGET) if method.budgets else [None]:
        rows = [trial(Point(experiment, TRIAL_SEED, method, budget, choice)) for choice in method.choices]
        if any("valid_auc" in row for row in rows):
            break
    return rows


def trial(point: Point) -> dict[str, Any]:
    found = figures(point)
    kept = {k: found[k] for k in ("valid_auc", "serving_bytes", "error") if k in found}
    return {**asdict(point.choice), "seed": point.seed, "budget": point.budget, **kept}


def best(method: Method, rows: Sequence[dict[str, Any]]) -> Choice:
    """The choice of the highest validation AUC; the first where none could be tried."""
    scores = [row.get("valid_auc", 0.0) for row in rows]
    return method.choices[scores.index(max(scores))] if scores else method.choices[0]


# -- figures ----------------------------------------------------------------------------------------------------------


def figures(point: Point) -> dict[str, Any]:
    """A point's figures, or why the method cannot be that small."""
    out = point.folder
    with alone(out):
        try:
            made = after(point) if point.method.kind == "after" else trained(point)
        except BudgetTooSmall as error:
            return {"error": str(error)}
        if point.method != FULL:  # what is made of the full table needs its weights
            shutil.rmtree(out / "checkpoints", ignore_errors=True)
    parts = ("serving_bytes", "dense_bytes", "vocabulary_bytes")
    kept = {key: made[key] for key in (*KEPT, *parts[1:], "trainings") if key in made}
    return {**kept, "served_bytes": sum(made[key] for key in parts)}


def trained(point: Point) -> dict[str, Any]:
    """The report of a run, with the bytes of vocabularies that serving it needs, and how many trainings it took."""
    config = config_of(point)
    report = train(config, point.folder, Silent(), resume=True)
    form = list(read_json(point.folder / "embedding.json").values())[-1]
    needed = backend_registry.get(form["backend"]).needs_id_list or form["config"].get("importance", False)
    return {
        **report,
        "vocabulary_bytes": report["vocabulary_bytes"] if needed else 0,
        "trainings": sum(stage["steps"] > 0 for stage in report["stages"]),
    }


def config_of(point: Point) -> RunConfig:
    """Raises BudgetTooSmall where not even one column fits."""
    method, choice = point.method, point.choice
    base = load_config(HERE / f"{point.experiment}.yaml")
    overrides: dict[str, Any] = {
        "seed": point.seed,
        "embedding.backend": method.uses,
        "training.l2_embedding": base.training.l2_embedding * choice.l2,
        **{f"embedding.options.{key}": value for key, value in choice.options.items()},
    }
    if method.width is not None:
        spec = group_of(base, open_dataset(base.data.path).schema)
        width = method.width(spec, point.budget)
        if width < 1:
            budget = int((point.budget or 1) * spec.full_bytes)
            raise BudgetTooSmall("a full table", budget, 4 * spec.num_embeddings * spec.columns(1))
        overrides["model.embedding_dim"] = width
    elif point.budget is not None:
        overrides["embedding.budget"] = point.budget
    return load_config(HERE / f"{point.experiment}.yaml", [f"{k}={json.dumps(v)}" for k, v in overrides.items()])


def after(point: Point) -> dict[str, Any]:
    """The report of the artifact that a post-training method makes of the trained full table."""
    full = Point(point.experiment, point.seed, FULL, None, FULL.choices[0])
    with alone(full.folder):
        trained(full)
    shutil.rmtree(point.folder, ignore_errors=True)
    report = write_artifact(load_run(full.folder), point.folder, point.method.uses, point.budget, point.choice.options)
    valid = evaluate_artifact(load_artifact(point.folder), "valid")
    return {**report, "valid_auc": valid["auc"], "trainings": 1}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Other processes wait for the end of the block before they enter one of the same folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    main()
