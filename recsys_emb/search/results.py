"""What a search ends with: every trial as a table, the winner as a config, the test split looked at once."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
from optuna._hypervolume import compute_hypervolume
from optuna.study import Study
from optuna.trial import FrozenTrial

from recsys_emb.config import RunConfig, dump_config, parse_config
from recsys_emb.embeddings.backends.field_dim import FieldDimConfig, named_widths
from recsys_emb.errors import UserError
from recsys_emb.files import write_json, write_text
from recsys_emb.report import run_page, search_page
from recsys_emb.search.config import Search
from recsys_emb.search.naming import drawn as drawn_in_words
from recsys_emb.search.naming import method_of
from recsys_emb.search.objective import (
    BASELINE,
    CANDIDATE,
    COMPLETE,
    CONFIG,
    FAILED,
    FREE,
    INFEASIBLE,
    OUT,
    OUTCOME,
    RUN,
    SEED_OF,
)
from recsys_emb.search.seeds import Rival, lead
from recsys_emb.training.main_metric import MainMetric
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import group_of, train

SUPPORTED = 0.5
"""Rank correlation of supernet scores and retrained AUCs below which a search says that it was a guess."""

ENOUGH = 10
"""Complete trials from which importances of parameters can be told."""

_SCHEMA = {
    "number": pl.Int64,
    "state": pl.String,
    "serving_bytes": pl.Int64,
    "seconds": pl.Float64,
    "run": pl.String,
    "message": pl.String,
    "enqueued": pl.String,
    "score": pl.Float64,
    "pareto": pl.Boolean,
    "winner": pl.Boolean,
}


@dataclass(frozen=True)
class Finished:
    """A trial or a baseline as the result shows it, see ``trials.parquet``; its main metric has that metric's key.

    ``method`` and ``settings`` say in words what it was (naming.py).
    """

    row: dict[str, Any]
    config: RunConfig | None
    method: str = ""
    settings: str = ""

    @property
    def name(self) -> str:
        return self.row["enqueued"] or f"trial {self.row['number']}"


def finish(search: Search, out: Path, study: Study, outside: Study, asked: int, seeds: int) -> dict[str, Any]:
    """Writes ``trials.parquet``, ``best.yaml``, ``search.json`` and ``report.html`` and looks at the test split.

    Args:
        search: what was searched.
        out: its folder.
        study: of the trials that were drawn.
        outside: of baselines that the space does not reach, and of retrained candidates.
        asked: how many trials were wanted.
        seeds: how many seeds the best trial and the best baseline were to be trained from.

    Returns:
        what ``search.json`` holds.

    Raises:
        UserError: no trial is complete, so there is nothing to choose from; ``trials.parquet`` says why.
    """
    scored, main = search.config.scoring == "supernet", search.task.main
    drawn, trained = collected(search, out, study, outside)
    _mark_front(trained, main)
    if scored:
        write_parquet(drawn, out / "candidates.parquet", main)
    try:
        winner = choose(search, trained)
        winner.row["winner"] = True
    finally:
        write_parquet(trained, out / "trials.parquet", main)
    assert winner.config is not None
    write_text(out / "best.yaml", dump_config(winner.config))
    rivals = best_of_each(search, trained)
    shown = {winner.name, *(rival.name for rival in rivals or ())}
    tested = [f for f in trained if f.name in shown or (f.row["enqueued"] and f.row["state"] == COMPLETE)]
    reports = {f.name: train(_config(f), out / f.row["run"], Silent(), resume=True) for f in tested}
    for f in tested:
        run_page(out / f.row["run"])
    front = (f for f in trained if f.row["pareto"])
    summary = {
        "study": study.study_name,
        **search.config.model_dump(mode="json", include={"mode", "scoring", "sampler", "pruner", "seed"}),
        "task": search.task.name,
        "dataset": search.dataset.name,
        "models": _models(search),
        "budget_bytes": search.budget,
        "full_bytes": search.full_bytes,
        "states": states(drawn),
        "asked": asked,
        "trials": sum(f.row["state"] not in FREE and not f.row["enqueued"] for f in drawn),
        "failure": next((f.row["message"] for f in drawn if f.row["state"] == FAILED), None),
        "winner": _entry(search, winner, reports) | {"params": _params(winner), "widths": _widths(search, winner)},
        "baselines": [_entry(search, f, reports) for f in trained if f.row["enqueued"]],
        "lead": None if rivals is None else lead(out, outside, *rivals, main, seeds),
        "tolerance": search.config.tolerance,
        "front": [_entry(search, f, reports) for f in sorted(front, key=lambda f: f.row["serving_bytes"])],
        "hypervolume": hypervolume(trained, search) if search.config.mode == "pareto" else None,
        "correlation": correlation(trained, main) if scored else None,
        "importances": importances(study),
    }
    write_json(out / "search.json", summary)
    search_page(out)
    return summary


def collected(search: Search, out: Path, study: Study, outside: Study) -> tuple[list[Finished], list[Finished]]:
    """What was drawn, and all that was trained from the base's seed."""
    scored = search.config.scoring == "supernet"
    drawn = [_finished(search, out, t, t.number, scored) for t in _ended(study)]
    trained = [_finished(search, out, t, t.user_attrs.get(CANDIDATE)) for t in _ended(outside)]
    return drawn, trained if scored else trained + drawn


def _ended(study: Study) -> list[FrozenTrial]:
    ended = (t for t in study.get_trials(deepcopy=False) if OUTCOME in t.user_attrs)
    return [t for t in ended if SEED_OF not in t.user_attrs]


def _finished(search: Search, out: Path, trial: FrozenTrial, number: int | None, scored: bool = False) -> Finished:
    attrs = trial.user_attrs
    config = parse_config(attrs[CONFIG]) if attrs[OUTCOME] == COMPLETE else None
    retrained = search.space.params_of(attrs[CONFIG]) if CANDIDATE in attrs and config else None
    row = {key: attrs.get(key) for key in ("serving_bytes", "seconds", "message", "score")} | {
        RUN: _run(out, attrs),
        "number": number,
        "state": attrs[OUTCOME],
        "enqueued": attrs.get(BASELINE),
        "pareto": False,
        "winner": False,
        **{f"param:{name}": value for name, value in (retrained or trial.params).items()},
    }
    main = search.task.main
    last = trial.intermediate_values.get(trial.last_step or -1)  # of one that was pruned
    row["score" if scored else main.key] = attrs.get(main.key, None if last is None else main.score(last))
    return Finished(row, config, *_in_words(search, trial, retrained))


def _in_words(search: Search, trial: FrozenTrial, retrained: Mapping[str, Any] | None) -> tuple[str, str]:
    """The method of a trial, and its settings: what was drawn, and where it is not the base's the width of all."""
    config = trial.user_attrs.get(CONFIG)
    if config is None:
        return "", drawn_in_words(trial.params)
    dim = config["model"]["embedding_dim"]
    own = {} if dim == search.base.model.embedding_dim else {"model.embedding_dim": dim}
    return method_of(config), drawn_in_words(own | dict(retrained or trial.params))


def _run(out: Path, attrs: Mapping[str, Any]) -> str | None:
    """Its folder, relative to the search's; that of another search on the same study whole."""
    run, home = attrs.get(RUN), Path(attrs.get(OUT, out))
    return str(home / run) if run and home != out.resolve() and (home / run).is_dir() else run


def _config(finished: Finished) -> RunConfig:
    assert finished.config is not None
    return finished.config


# -- choosing ---------------------------------------------------------------------------------------------------------


def choose(search: Search, trained: Sequence[Finished]) -> Finished:
    """The winner: the best validation metric; in Pareto mode the smallest table within ``tolerance`` of it.

    Raises:
        UserError: nothing is complete.
    """
    complete = [f for f in trained if f.row["state"] == COMPLETE]
    if not complete:
        raise UserError(_why_nothing(search, trained))
    main = search.task.main
    best = max(complete, key=lambda f: (_score(f.row, main), -f.row["serving_bytes"]))
    if search.config.mode == "budget":
        return best
    near = [f for f in complete if _score(f.row, main) >= _score(best.row, main) - search.config.tolerance]
    return min(near, key=lambda f: (f.row["serving_bytes"], -_score(f.row, main)))


def best_of_each(search: Search, trained: Sequence[Finished]) -> tuple[Rival, Rival] | None:
    """The best trial and the best baseline, by the rule of ``choose``; None where one of them is missing."""
    complete = [f for f in trained if f.row["state"] == COMPLETE]
    trials, rules = ([f for f in complete if bool(f.row["enqueued"]) is known] for known in (False, True))
    if not trials or not rules:
        return None
    trial, rule = (Rival(f.name, f.row["run"], _config(f)) for f in (choose(search, trials), choose(search, rules)))
    return trial, rule


def _score(row: Mapping[str, Any], main: MainMetric) -> float:
    return main.score(main.of(row))


def _why_nothing(search: Search, trained: Sequence[Finished]) -> str:
    infeasible = [f for f in trained if f.row["state"] == INFEASIBLE]
    if len(infeasible) == len(trained):
        sizes = [f.row["serving_bytes"] for f in infeasible if f.row["serving_bytes"] and not f.row["enqueued"]]
        least = f"; the smallest that was drawn takes {min(sizes):,} bytes" if sizes else ""
        return (
            f"--budget: none of {len(infeasible)} candidates fits in {search.budget:,} bytes{least}; "
            "raise the budget or let the space go lower"
        )
    failed = next((f for f in trained if f.row["state"] == "failed"), trained[0])
    return f"no trial is complete; the first that {failed.row['state']}: {failed.row['message']}"


def _mark_front(trained: Sequence[Finished], main: MainMetric) -> None:
    """Marks complete trials that no other beats in both the metric and bytes."""
    best = -np.inf
    complete = [f.row for f in trained if f.row["state"] == COMPLETE]
    for row in sorted(complete, key=lambda r: (r["serving_bytes"], -_score(r, main))):
        if _score(row, main) > best:
            best, row["pareto"] = _score(row, main), True


def hypervolume(trained: Sequence[Finished], search: Search) -> float:
    """Area between the front and the corner of a metric by chance (AUC 0.5) at the bytes of the full tables, bytes as a
    ratio to those."""
    main = search.task.main
    points = [(-_score(f.row, main), f.row["serving_bytes"] / search.full_bytes) for f in trained if f.row["pareto"]]
    corner = np.array([-main.score(main.chance), 1.0])
    inside = np.array([p for p in points if (np.array(p) <= corner).all()]).reshape(-1, 2)
    return float(compute_hypervolume(inside, corner))


def correlation(trained: Sequence[Finished], main: MainMetric) -> dict[str, Any] | None:
    """Spearman's rank correlation of supernet score and the metric after training; None for fewer than three pairs."""
    both = [f.row for f in trained if f.row["score"] is not None and f.config is not None]
    pairs = [(row["score"], _score(row, main)) for row in both]
    if len(pairs) < 3:
        return None
    from scipy.stats import spearmanr  # takes a while to import

    rho = float(spearmanr(*zip(*pairs)).statistic)
    return {"spearman": None if np.isnan(rho) else rho, "n": len(pairs), "supported": bool(rho >= SUPPORTED)}


def importances(study: Study) -> dict[str, float]:
    """How much each searched value matters for the objective by PED-ANOVA, shares of all; empty after few trials."""
    if sum(map(is_done, study.get_trials(deepcopy=False))) < ENOUGH:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of values that were seldom drawn
        return optuna.importance.get_param_importances(study)


def states(finished: Sequence[Finished]) -> dict[str, int]:
    """How many trials ended how."""
    found = [f.row["state"] for f in finished]
    return {state: found.count(state) for state in dict.fromkeys(found)}


def is_done(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(OUTCOME) == COMPLETE


# -- writing ----------------------------------------------------------------------------------------------------------


def write_parquet(finished: Sequence[Finished], path: Path, main: MainMetric) -> None:
    """One row per trial; a ``param:`` column per searched path."""
    schema = {"number": _SCHEMA["number"], "state": _SCHEMA["state"], main.key: pl.Float64} | _SCHEMA
    params = sorted({key for f in finished for key in f.row if key.startswith("param:")})
    columns: dict[str, Any] = {key: pl.Series(key, [f.row.get(key) for f in finished], t) for key, t in schema.items()}
    for key in params:
        values = [f.row.get(key) for f in finished]
        texts = any(isinstance(v, str) for v in values)
        columns[key] = [v if v is None or not texts else str(v) for v in values]
    pl.DataFrame(columns, strict=False).write_parquet(path)


def _entry(search: Search, finished: Finished, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    report, row, main = reports.get(finished.name), finished.row, search.task.main
    return {
        "name": finished.name,
        "method": finished.method,
        "settings": finished.settings,
        "number": row["number"],
        "baseline": row["enqueued"],
        "state": row["state"],
        "message": row["message"],
        "run": row["run"],
        f"valid_{main.key}": row.get(main.key),
        "serving_bytes": row["serving_bytes"],
        "test": None if report is None else {key: report.get(key) for key in search.task.keys},
    }


def _models(search: Search) -> list[str]:
    """The names of the models that are searched, or of the one that is not."""
    searched = next((p for p in search.space.params if ("model", "name") in p.paths), None)
    return [search.base.model.name] if searched is None else [str(name) for name in searched.choices]


def _params(finished: Finished) -> dict[str, Any]:
    return {k.removeprefix("param:"): v for k, v in finished.row.items() if k.startswith("param:") and v is not None}


def _widths(search: Search, finished: Finished) -> dict[str, int] | None:
    """Columns by table, of a winner on ``field_dim``."""
    options = _config(finished).embedding.options
    if not isinstance(options, FieldDimConfig):
        return None
    return named_widths(group_of(_config(finished), search.dataset.schema), options)
