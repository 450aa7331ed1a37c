"""A search from its config to its result."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, Trial

from recsys_emb.config import RunConfig
from recsys_emb.errors import UserError
from recsys_emb.files import unused
from recsys_emb.search.baselines import baselines, tuned
from recsys_emb.search.config import Search
from recsys_emb.search.narrow import by_table, narrowed
from recsys_emb.search.objective import (
    BASELINE,
    CANDIDATE,
    CONFIG,
    RUN,
    Infeasible,
    Result,
    TrainObjective,
    as_json,
    find_original,
    name_of,
    planned_bytes,
    quiet_optuna,
)
from recsys_emb.search.results import best_of_each, collected, finish, is_done
from recsys_emb.search.seeds import enqueue_seeds
from recsys_emb.search.study import JOURNAL, Job, Place, Say, claim, open_study, work_off
from recsys_emb.search.supernet import Supernet
from recsys_emb.training.trainer import Reporter


@dataclass(frozen=True)
class SupernetObjective:
    """Scores a trial's widths on one trained network; nothing is trained.

    Attributes:
        search: what is searched.
        folder: the supernet's run.
    """

    search: Search
    folder: Path

    @cached_property
    def supernet(self) -> Supernet:
        return Supernet.open(self.folder)

    def __call__(self, study: Study, trial: Trial, config: RunConfig) -> Result:
        size = planned_bytes(self.search, config)
        find_original(study, trial)
        return Result(self.search.task.main.score(self.supernet.score(_widths(config))), size)


def _widths(config: RunConfig) -> Mapping[str, int]:
    return config.embedding.options.model_dump()["widths"]


def run_search(
    search: Search,
    out: Path,
    trials: int,
    reporter: Reporter,
    say: Say,
    *,
    jobs: int = 1,
    name: str = "search",
    storage: str | None = None,
    resume: bool = False,
    seeds: int = 1,
) -> dict[str, Any]:
    """Searches, or goes on with a search, and writes its result.

    Args:
        search: as ``load_search`` gives it.
        out: the folder; see study.py.
        trials: how many to draw and evaluate in all; infeasible and repeated ones cost nothing and do not count, nor do
            baselines.
        reporter: is told how each training goes.
        say: is told of every finished trial; it is sent to the processes.
        jobs: processes on the study.
        name: of the study.
        storage: SQL URL; None for a journal file in ``out``.
        resume: continue the search in ``out``, or the study of that name.
        seeds: train the best trial and the best baseline from so many seeds, the base's and those after it.

    Returns:
        what ``search.json`` holds.

    Raises:
        UserError: a folder or a study that exists, or belongs to another search; a budget that nothing meets.
    """
    _make(out, resume, storage)
    with _sole_owner(out), quiet_optuna(), _says_what_is_lost():
        inner, outer = Place(out, name, storage), Place(out, f"{name}-trained", storage)
        claim(inner)
        study = open_study(search, inner, resume)
        outside = open_study(search, outer, resume)
        scored = search.config.scoring == "supernet"
        if search.space.widths:
            _check_reach(search)
        _enqueue_baselines(search, study, outside)
        training = TrainObjective(search, out, reporter)
        first = Job(search, outer, training, None, say)
        if not scored:
            work_off([first, Job(search, inner, training, trials, say)], jobs)
        else:
            choices = sorted({w for p in search.space.params for w in p.choices})
            Supernet.train(search.base, out / "supernet", reporter, resume=True, choices=choices)
            scoring = SupernetObjective(search, out / "supernet")
            work_off([first, Job(search, inner, scoring, trials, say)], jobs)
            _enqueue_best(search, study, outside, scoring)
        _enqueue_tuned(search, study, outside)
        work_off([first], jobs)
        rivals = best_of_each(search, collected(search, out, study, outside)[1])
        if rivals is not None and seeds > 1:
            enqueue_seeds(outside, rivals, seeds)
            work_off([first], jobs)
        return finish(search, out, study, outside, trials, seeds)


def _make(out: Path, resume: bool, storage: str | None) -> None:
    if resume and storage is None and not (out / JOURNAL).is_file():
        raise UserError(f"--resume: {out} holds no search to continue; leave out --resume to start one there")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; continue it with --resume, or name a new folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None


@contextmanager
def _sole_owner(out: Path) -> Iterator[None]:
    """One search a folder; the system lets go of it when the process ends, however it ends."""
    with open(out / "LOCK", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"--out {out}: another process is searching here; wait for it, or name a new folder"
            ) from None
        yield


@contextmanager
def _says_what_is_lost() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; nothing finished is lost", error.filename) from error


def _check_reach(search: Search) -> None:
    """Raises UserError when not even the smallest widths fit, before anything is trained for nothing."""
    smallest = search.run_config({path: min(map(p.value, p.probes())) for p in search.space.params for path in p.paths})
    try:
        planned_bytes(search, smallest)
    except Infeasible as infeasible:
        raise UserError(
            f"--budget: the smallest widths of the space take {infeasible.bytes:,} bytes, the budget is "
            f"{search.budget:,}; raise the budget or let the space go lower"
        ) from None


# -- what is not drawn ------------------------------------------------------------------------------------------------


def _enqueue_baselines(search: Search, study: Study, outside: Study) -> None:
    """Puts each baseline first in the queue, as a point of the space where it is one."""
    known = _known_baselines(study, outside)
    for name, config in baselines(search).items():
        if name in known:
            continue
        scored = search.config.scoring == "supernet"
        run = {RUN: f"baselines/{name}"}
        params = _point(search, config)
        if params is not None:
            study.enqueue_trial(params, user_attrs={BASELINE: name, **({} if scored else run)})
        if params is None or scored:
            outside.enqueue_trial({}, user_attrs={BASELINE: name, **run, CONFIG: as_json(config)})


def _enqueue_tuned(search: Search, study: Study, outside: Study) -> None:
    """Puts the baselines that keep the budget in the queue again, with the settings of the best trial."""
    if search.space.widths:
        return
    done = [t for t in study.get_trials(deepcopy=False) if is_done(t) and BASELINE not in t.user_attrs]
    if not done:
        return
    best = max(done, key=lambda t: (t.values[0], -t.number))
    known = _known_baselines(study, outside)
    for name, config in tuned(search, best.user_attrs[CONFIG]).items():
        own = f"{name}, settings of {name_of(best)}"
        if own not in known and name in known and is_done(known[name]):
            attrs = {BASELINE: own, RUN: f"baselines/{name}-{best.number:04d}", CONFIG: as_json(config)}
            outside.enqueue_trial({}, user_attrs=attrs)


def _known_baselines(*studies: Study) -> dict[str, FrozenTrial]:
    trials = (t for study in studies for t in study.get_trials(deepcopy=False))
    return {t.user_attrs[BASELINE]: t for t in trials if BASELINE in t.user_attrs}


def _point(search: Search, config: RunConfig) -> dict[str, Any] | None:
    """What Optuna would draw to get the config; None when it cannot."""
    params = search.space.params_of(config.model_dump(mode="json"))
    if params is None:
        return None
    same = search.run_config(search.space.suggest(FixedTrial(params))) == config
    return params if same else None


def _enqueue_best(search: Search, study: Study, outside: Study, scoring: SupernetObjective) -> None:
    """Puts the best scored candidates, narrowed, in the queue of what is trained: as many different ones as wanted."""
    queued = {t.user_attrs[CANDIDATE]: t.user_attrs[CONFIG] for t in outside.trials if CANDIDATE in t.user_attrs}
    for trial in by_score(search, study):
        if len(queued) >= search.config.retrain:
            return
        if trial.number in queued:
            continue
        supernet = scoring.supernet
        widths = {p.name: p.value(trial.params[p.name]) for p in search.space.params}
        widths = narrowed(search.space, widths, supernet.predictions, search.task, search.config.narrow)
        config = as_json(search.run_config({path: widths[p.name] for p in search.space.params for path in p.paths}))
        if config in queued.values():
            continue  # another one, narrowed to the same
        queued[trial.number] = config
        outside.enqueue_trial(
            {},
            user_attrs={
                CONFIG: config,
                RUN: f"retrained/{trial.number:04d}",
                CANDIDATE: trial.number,
                "score": supernet.score(by_table(search.space, widths)),
            },
        )


def by_score(search: Search, study: Study) -> list[FrozenTrial]:
    """The best scores first; in Pareto mode ``retrain`` of the front, evenly along it."""
    if search.config.mode == "budget":
        done = [t for t in study.get_trials(deepcopy=False) if is_done(t)]
        return sorted(done, key=lambda t: (-t.values[0], t.number))
    front = sorted((t for t in study.best_trials if is_done(t)), key=lambda t: t.values[1])
    count = min(search.config.retrain, len(front))
    at = np.unique(np.linspace(0, len(front) - 1, count).round().astype(int))
    return [front[i] for i in at]


def default_out(path: Path) -> Path:
    """``runs/search-NAME``, numbered where it is taken."""
    return unused(Path("runs") / f"search-{path.stem}")
