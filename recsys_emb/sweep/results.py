"""The files of a sweep: one JSON a seed, ``NAME-SEED.json``, and means over the seeds.

A file holds ``command``, ``seed``, ``config``, ``machine``, ``trials`` (by method, a row a choice that was tried) and
``rows``: one a method and budget, with its ``options``, ``l2`` and ``finetune``, and its figures or ``error``. All but
``seed`` and ``rows`` may lack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from recsys_emb.errors import UserError
from recsys_emb.files import read_json
from recsys_emb.sweep.methods import FULL, Choice, known_methods

Result = dict[str, Any]
Row = dict[str, Any]

AVERAGED = (
    *("auc", "valid_auc", "logloss", "serving_bytes", "vocabulary_bytes", "dense_bytes", "served_bytes", "ratio"),
    *("training_bytes", "epochs", "train_seconds", "lost"),
)
"""Figures of a row of which a point has the mean, and the spread as ``<key>_std``."""


def result_file(folder: Path, name: str, seed: int) -> Path:
    """Where the figures of one seed are."""
    return folder / f"{name}-{seed}.json"


def read_result(path: Path) -> Result:
    """One file. Raises UserError when it is no result of a sweep."""
    result = read_json(path)
    rows = result.get("rows")
    if not isinstance(rows, list) or "seed" not in result:
        raise UserError(f"{path}: no result of a sweep (it lacks 'seed' or 'rows')")
    return {"trials": {}, **result}


def read_results(folder: str | Path) -> dict[str, list[Result]]:
    """All sweeps in a folder: name -> the result of each seed, by seed.

    Raises:
        UserError: there is none, or one that cannot be read.
    """
    found: dict[str, list[Result]] = defaultdict(list)
    for path in sorted(Path(folder).glob("*-[0-9]*.json")):
        found[path.stem.rpartition("-")[0]].append(read_result(path))
    if not found:
        raise UserError(f"{folder}: no results of a sweep (NAME-SEED.json); `recsys-emb sweep` makes them")
    return {name: sorted(results, key=lambda result: result["seed"]) for name, results in found.items()}


def points(results: Sequence[Result]) -> list[Row]:
    """One row a method and budget, the mean of the seeds; full tables first, in the order of ``known_methods``.

    A row has ``method``, ``budget`` (None: its own size), ``seeds`` (that have a figure), ``of_seeds`` (that have been
    run), ``settings`` in words (a dash where an
    old file does not say), ``trainings``, ``error`` and ``least_bytes`` where it is out of reach, and the means of
    ``AVERAGED`` with ``<key>_std`` (sample standard deviation, None for one). ``ratio`` is to the full tables of the
    sweep's own width, and ``lost`` is their test AUC minus the row's, seed by seed.
    """
    groups: dict[tuple[str, float | None], list[Row]] = defaultdict(list)
    for result in results:
        for row in _measured(result["rows"]):
            groups[row["method"], row["budget"]].append(row)
    known = list(known_methods())
    seen = list(dict.fromkeys(method for method, _ in groups))
    order = sorted(seen, key=lambda method: known.index(method) if method in known else len(known))
    made = [_point(method, budget, rows) for (method, budget), rows in groups.items()]
    return sorted(made, key=lambda point: (order.index(point["method"]), -(point["budget"] or 2.0)))


def by_method(rows: Sequence[Row]) -> dict[str, dict[float | None, Row]]:
    """The points of each method by budget, in their order."""
    methods: dict[str, dict[float | None, Row]] = defaultdict(dict)
    for row in rows:
        methods[row["method"]][row["budget"]] = row
    return dict(methods)


def _measured(rows: Sequence[Row]) -> list[Row]:
    """With what full tables are needed for: a smaller D is not its own measure."""
    whole = next((row for row in rows if row["method"] == FULL.name and "auc" in row), None)
    measured = []
    for row in rows:
        more: Row = {}
        if "auc" in row:
            sizes = [row.get(key) for key in ("serving_bytes", "vocabulary_bytes", "dense_bytes")]
            more["served_bytes"] = None if None in sizes else sum(sizes)
            if whole is not None:
                more["ratio"] = row["serving_bytes"] / whole["serving_bytes"]
                more["lost"] = whole["auc"] - row["auc"]
        measured.append({**row, **more})
    return measured


def _point(method: str, budget: float | None, rows: Sequence[Row]) -> Row:
    made = [row for row in rows if "auc" in row]
    point: Row = {
        "method": method,
        "budget": budget,
        "seeds": len(made),
        "of_seeds": len(rows),
        "settings": settings_of(rows[0]).in_words() if "options" in rows[0] else "–",
        "trainings": max((row.get("trainings", 1) for row in rows), default=1),
        "error": next((row["error"] for row in rows if "error" in row), None),
        "least_bytes": next((row["least_bytes"] for row in rows if "least_bytes" in row), None),
    }
    for key in AVERAGED:
        values = [row[key] for row in made if row.get(key) is not None]
        point[key] = fmean(values) if values else None
        point[f"{key}_std"] = stdev(values) if len(values) > 1 else None
    return point


def settings_of(row: Row) -> Choice:
    """The choice of settings that a row or a trial was made with."""
    return Choice(options=row.get("options", {}), l2=row.get("l2", 1.0), finetune=row.get("finetune"))


def best_trial(trials: Sequence[Row]) -> int:
    """The number of the choice of the highest validation AUC; of equals, and where none could be tried, the first."""
    scores = [trial.get("valid_auc", 0.0) for trial in trials]
    return scores.index(max(scores)) if scores else 0
