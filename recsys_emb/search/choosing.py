"""Which trial wins, which none beats, and how far the scores of candidates and the drawn values can be trusted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from optuna._hypervolume import compute_hypervolume
from optuna.study import Study

from recsys_emb.errors import UserError
from recsys_emb.search.config import Search
from recsys_emb.search.finished import Finished, is_done
from recsys_emb.search.objective import INFEASIBLE
from recsys_emb.search.seeds import Rival
from recsys_emb.training.main_metric import MainMetric

SUPPORTED = 0.5
"""Rank correlation of scores and AUCs of what was carried out below which a search says that it was a guess."""

ENOUGH = 10
"""Complete trials from which importances of parameters can be told."""


def choose(search: Search, trained: Sequence[Finished], drawn: Sequence[Finished] = ()) -> Finished:
    """The winner: the best validation metric; in Pareto mode the smallest table within ``tolerance`` of it.

    Raises:
        UserError: nothing is complete, and why, as ``trained`` or else ``drawn`` tell.
    """
    complete = [f for f in trained if f.complete]
    if not complete:
        raise UserError(_why_nothing(search, [*trained, *(f for f in drawn if f not in trained)]))
    main = search.task.main
    best = max(complete, key=lambda f: (f.score(main), -f.row["serving_bytes"]))
    if search.config.mode == "budget":
        return best
    near = [f for f in complete if f.score(main) >= best.score(main) - search.config.tolerance]
    return min(near, key=lambda f: (f.row["serving_bytes"], -f.score(main)))


def best_of_each(search: Search, trained: Sequence[Finished]) -> tuple[Rival, Rival] | None:
    """The best trial and the best baseline, by the rule of ``choose``; None where one of them is missing."""
    complete = [f for f in trained if f.complete]
    trials, rules = ([f for f in complete if bool(f.row["enqueued"]) is known] for known in (False, True))
    if not trials or not rules:
        return None
    trial, rule = (Rival(f.name, f.row["run"], f.of_config) for f in (choose(search, trials), choose(search, rules)))
    return trial, rule


def _why_nothing(search: Search, found: Sequence[Finished]) -> str:
    infeasible = [f for f in found if f.row["state"] == INFEASIBLE]
    if len(infeasible) == len(found):
        sizes = [f.row["serving_bytes"] for f in infeasible if f.row["serving_bytes"] and not f.row["enqueued"]]
        least = f"; the smallest that was drawn takes {min(sizes):,} bytes" if sizes else ""
        return (
            f"--budget: none of {len(infeasible)} candidates fits in {search.budget:,} bytes{least}; "
            "raise the budget or let the space go lower"
        )
    failed = next((f for f in found if f.row["state"] == "failed"), found[0])
    return f"no trial is complete; the first that {failed.row['state']}: {failed.row['message']}"


def front(trained: Sequence[Finished], main: MainMetric) -> list[Finished]:
    """Those complete ones that no other beats in both the metric and bytes, smallest first."""
    found: list[Finished] = []
    for f in sorted((f for f in trained if f.complete), key=lambda f: (f.row["serving_bytes"], -f.score(main))):
        if not found or f.score(main) > found[-1].score(main):
            found.append(f)
    return found


def hypervolume(points: Sequence[Finished], search: Search) -> float:
    """Area between a front and the corner of a metric by chance (AUC 0.5) at the bytes of the full tables, bytes as a
    ratio to those."""
    main = search.task.main
    losses = [(-f.score(main), f.row["serving_bytes"] / search.full_bytes) for f in points]
    corner = np.array([-main.score(main.chance), 1.0])
    inside = np.array([p for p in losses if (np.array(p) <= corner).all()]).reshape(-1, 2)
    return float(compute_hypervolume(inside, corner))


def correlation(trained: Sequence[Finished], main: MainMetric) -> dict[str, Any] | None:
    """Spearman's rank correlation of a candidate's score and the metric of its run; None for fewer than three pairs."""
    pairs = [(f.row["score"], f.score(main)) for f in trained if f.row["score"] is not None and f.complete]
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
