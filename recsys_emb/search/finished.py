"""Trials as a result shows them: how each ended, its figures, what was drawn for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from optuna.study import Study
from optuna.trial import FrozenTrial

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.search.config import Search
from recsys_emb.search.naming import drawn as drawn_in_words
from recsys_emb.search.naming import method_of
from recsys_emb.search.objective import (
    AT,
    BASELINE,
    CANDIDATE,
    COMPLETE,
    CONFIG,
    OUT,
    OUTCOME,
    RUN,
    SCORE,
    SEED_OF,
    name_of,
)
from recsys_emb.training.main_metric import MainMetric

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

    Attributes:
        name: what it is called.
        row: its figures; ``run`` is relative to the folder of the search.
        config: of one that is complete.
        method, settings: in words what it was (naming.py).
    """

    name: str
    row: dict[str, Any]
    config: RunConfig | None
    method: str = ""
    settings: str = ""

    @property
    def complete(self) -> bool:
        return self.row["state"] == COMPLETE

    @property
    def of_config(self) -> RunConfig:
        """The config of one that is complete."""
        assert self.config is not None
        return self.config

    def score(self, main: MainMetric) -> float:
        """Its main metric, signed so that more is better."""
        return main.score(main.of(self.row))


@dataclass(frozen=True)
class Part:
    """What a search came to at one of its budgets, or at its only one.

    Attributes:
        search: at that budget.
        study: of what was drawn.
        drawn: all of that.
        trained: what was trained for this budget on its own, from the base's seed.
        fitting: the same, and what was trained for other budgets and fits into this one.
    """

    search: Search
    study: Study
    drawn: list[Finished]
    trained: list[Finished]
    fitting: list[Finished]


def collected(search: Search, out: Path, studies: Sequence[Study], outside: Study) -> list[Part]:
    """A search's parts, one a budget.

    Args:
        search: of all budgets.
        out: its folder.
        studies: what was drawn, one a budget.
        outside: baselines and retrained candidates of all budgets.
    """
    parts = []
    for at_budget, study in zip(search.by_budget(), studies):
        drawn = [_finished(at_budget, out, t, t.number) for t in _ended(study)]
        own = [t for t in _ended(outside) if t.user_attrs.get(AT, "") == at_budget.at]
        trained = [_finished(at_budget, out, t, t.user_attrs.get(CANDIDATE)) for t in own]
        trained += [f for t, f in zip(_ended(study), drawn) if not _is_candidate(at_budget, t)]
        parts.append(Part(at_budget, study, drawn, trained, [*trained]))
    for part in parts:
        others = (f for other in parts if other is not part for f in other.trained if f.complete)
        part.fitting.extend(f for f in others if f.row["serving_bytes"] <= (part.search.budget or 0))
    return parts


def _ended(study: Study) -> list[FrozenTrial]:
    ended = (t for t in study.get_trials(deepcopy=False) if OUTCOME in t.user_attrs)
    return [t for t in ended if SEED_OF not in t.user_attrs]


def _is_candidate(search: Search, trial: FrozenTrial) -> bool:
    """It is scored, not trained on its own."""
    made = trial.user_attrs.get(CONFIG, {}).get("compact")
    return search.config.scoring == "supernet" or made is not None


def _finished(search: Search, out: Path, trial: FrozenTrial, number: int | None) -> Finished:
    attrs, main = trial.user_attrs, search.task.main
    config = parse_config(attrs[CONFIG]) if attrs[OUTCOME] == COMPLETE else None
    retrained = search.space.params_of(attrs[CONFIG]) if CANDIDATE in attrs and config else None
    last = trial.intermediate_values.get(trial.last_step or -1)  # of one that was pruned
    row = {key: attrs.get(key) for key in ("serving_bytes", "seconds", "message", SCORE)} | {
        main.key: attrs.get(main.key, None if last is None else main.score(last)),
        RUN: _run(out, attrs),
        "number": number,
        "state": attrs[OUTCOME],
        "enqueued": name_of(trial) if BASELINE in attrs else None,
        "pareto": False,
        "winner": False,
        **{f"param:{name}": value for name, value in (retrained or trial.params).items()},
    }
    return Finished(name_of(trial), row, config, *_in_words(search, trial, retrained))


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


def states(finished: Sequence[Finished]) -> dict[str, int]:
    """How many trials ended how."""
    found = [f.row["state"] for f in finished]
    return {state: found.count(state) for state in dict.fromkeys(found)}


def is_done(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(OUTCOME) == COMPLETE


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
