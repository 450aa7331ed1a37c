"""What a search trains besides what it draws: baselines, and the best of what was scored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial

from recsys_emb.config import RunConfig
from recsys_emb.search.baselines import baselines, tuned
from recsys_emb.search.config import Search
from recsys_emb.search.finished import is_done
from recsys_emb.search.narrow import by_table, narrowed
from recsys_emb.search.objective import AT, BASELINE, CANDIDATE, CONFIG, RUN, SCORE, as_json
from recsys_emb.search.supernet import Supernet


def enqueue_baselines(search: Search, study: Study, outside: Study) -> None:
    """Puts each baseline first in the queue, as a point of the space where it is one."""
    known = _known_baselines(search, study, outside)
    scored = search.config.scoring == "supernet"
    for name, config in baselines(search).items():
        if name in known:
            continue
        own = {BASELINE: name, AT: search.at}
        run = {RUN: f"baselines/{_folder(search, name)}"}
        params = _point(search, config)
        if params is not None:
            study.enqueue_trial(params, user_attrs=own | ({} if scored else run))
        if params is None or scored:
            outside.enqueue_trial({}, user_attrs=own | run | {CONFIG: as_json(config)})


def enqueue_tuned(search: Search, study: Study, outside: Study) -> None:
    """Puts the baselines that keep the budget in the queue again, with the settings of the best trial."""
    if search.space.widths:
        return
    done = [t for t in study.get_trials(deepcopy=False) if is_done(t) and BASELINE not in t.user_attrs]
    if not done:
        return
    best = max(done, key=lambda t: (t.values[0], -t.number))
    known = _known_baselines(search, study, outside)
    for name, config in tuned(search, search.space.suggest(FixedTrial(best.params))).items():
        own = f"{name}, settings of trial {best.number}"
        if own not in known and name in known and is_done(known[name]):
            run = f"baselines/{_folder(search, name)}-{best.number:04d}"
            attrs = {BASELINE: own, AT: search.at, RUN: run, CONFIG: as_json(config)}
            outside.enqueue_trial({}, user_attrs=attrs)


def _folder(search: Search, name: str) -> str:
    return f"{search.at}-{name}" if search.at else name


def _known_baselines(search: Search, *studies: Study) -> dict[str, FrozenTrial]:
    """Those of the search's budget, by name."""
    trials = (t for study in studies for t in study.get_trials(deepcopy=False))
    own = (t for t in trials if t.user_attrs.get(AT, "") == search.at)
    return {t.user_attrs[BASELINE]: t for t in own if BASELINE in t.user_attrs}


def _point(search: Search, config: RunConfig) -> dict[str, Any] | None:
    """What Optuna would draw to get the config; None when it cannot, or would only score it."""
    params = search.space.params_of(config.model_dump(mode="json"))
    if params is None or config.compact is not None:
        return None
    same = search.run_config(search.space.suggest(FixedTrial(params))) == config
    return params if same else None


def enqueue_best(search: Search, study: Study, outside: Study, supernet: Supernet | None) -> None:
    """Puts the best scored candidates in the queue of what is carried out: as many different ones as wanted.

    Those of a supernet are narrowed; those that were compressed are taken as they are.
    """
    own = [t.user_attrs for t in outside.get_trials(deepcopy=False) if t.user_attrs.get(AT, "") == search.at]
    known = [attrs.get(CONFIG) for attrs in own]
    queued = {attrs[CANDIDATE] for attrs in own if CANDIDATE in attrs}
    for trial in by_score(search, study):
        if len(queued) >= search.config.retrain:
            return
        if trial.number in queued:
            continue
        config, score = trial.user_attrs.get(CONFIG, {}), trial.user_attrs[SCORE]
        if supernet is not None:
            config, score = _narrowed(search, trial, supernet)
        if config in known:
            continue  # another one, narrowed to the same, or a baseline
        known.append(config)
        queued.add(trial.number)
        run = f"retrained/{search.number(trial.number)}"
        attrs = {CONFIG: config, AT: search.at, RUN: run, CANDIDATE: trial.number, SCORE: score}
        outside.enqueue_trial({}, user_attrs=attrs)


def _narrowed(search: Search, trial: FrozenTrial, supernet: Supernet) -> tuple[Mapping[str, Any], float]:
    """The config of a candidate without the tables that its score does not miss, and its score then."""
    params = search.space.params
    widths = {p.name: p.value(trial.params[p.name]) for p in params}
    widths = narrowed(search.space, widths, supernet.predictions, search.task, search.config.narrow)
    config = search.run_config({path: widths[p.name] for p in params for path in p.paths})
    return as_json(config), supernet.score(by_table(search.space, widths))


def by_score(search: Search, study: Study) -> list[FrozenTrial]:
    """What was only scored, the best first; in Pareto mode ``retrain`` of the front, evenly along it."""
    if search.config.mode == "budget":
        done = [t for t in study.get_trials(deepcopy=False) if is_done(t) and SCORE in t.user_attrs]
        return sorted(done, key=lambda t: (-t.values[0], t.number))
    front = sorted((t for t in study.best_trials if is_done(t) and SCORE in t.user_attrs), key=lambda t: t.values[1])
    count = min(search.config.retrain, len(front))
    at = np.unique(np.linspace(0, len(front) - 1, count).round().astype(int))
    return [front[i] for i in at]
