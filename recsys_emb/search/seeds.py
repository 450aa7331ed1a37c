"""How far the best trial leads the best baseline, when both are trained from several seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from optuna.study import Study

from recsys_emb.config import RunConfig
from recsys_emb.search.objective import COMPLETE, CONFIG, OUTCOME, RUN, SEED_OF, as_json
from recsys_emb.training.delong import auc_change
from recsys_emb.training.main_metric import MainMetric
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train
from recsys_emb.training.run_files import PREDICTIONS
from recsys_emb.training.stored_predictions import StoredPredictions


@dataclass(frozen=True)
class Rival:
    """A trial or a baseline that is compared over seeds.

    Attributes:
        name: as the result names it.
        run: its folder, relative to the search's.
        config: of its own seed.
    """

    name: str
    run: str
    config: RunConfig

    def reseeded(self, seed: int) -> RunConfig:
        return self.config.model_copy(update={"seed": seed})


def enqueue_seeds(outside: Study, rivals: tuple[Rival, Rival], seeds: int) -> None:
    """Puts what is still to be trained in the queue: each rival from the ``seeds - 1`` seeds after its own."""
    known = [t.user_attrs[CONFIG] for t in outside.get_trials(deepcopy=False) if SEED_OF in t.user_attrs]
    for rival in rivals:
        for seed in range(rival.config.seed + 1, rival.config.seed + seeds):
            config = as_json(rival.reseeded(seed))
            if config not in known:
                attrs = {CONFIG: config, RUN: f"{rival.run}-seed{seed}", SEED_OF: rival.name}
                outside.enqueue_trial({}, user_attrs=attrs)


def lead(out: Path, outside: Study, trial: Rival, baseline: Rival, main: MainMetric, seeds: int) -> dict[str, Any]:
    """By how much the trial leads on the test split, seed by seed.

    Args:
        out: the search's folder.
        outside: the study in which both were trained again.
        trial, baseline: who are compared; their own runs are the first seed's.
        main: the metric.
        seeds: how many were wanted; those that failed are left out.

    Returns:
        the names and ``seeds``; ``trial_test`` and ``baseline_test``, the metric of each seed; ``mean`` and ``std`` of
        the differences, signed so that more is better, the latter None for one seed; ``stderr``, DeLong's of the first
        seed's difference, None where the runs keep no predictions of the same rows.
    """
    again = {
        (t.user_attrs[SEED_OF], t.user_attrs[CONFIG]["seed"]): t.user_attrs[RUN]
        for t in outside.get_trials(deepcopy=False)
        if SEED_OF in t.user_attrs and t.user_attrs.get(OUTCOME) == COMPLETE
    }
    first = trial.config.seed
    runs = [(first, trial.run, baseline.run)]
    for seed in range(first + 1, first + seeds):
        both = again.get((trial.name, seed)), again.get((baseline.name, seed))
        if both[0] and both[1]:
            runs.append((seed, both[0], both[1]))

    def test(rival: Rival, seed: int, run: str) -> float:
        return main.of(train(rival.reseeded(seed), out / run, Silent(), resume=True))

    values = [(test(trial, seed, own), test(baseline, seed, other)) for seed, own, other in runs]
    ahead = [main.score(of_trial) - main.score(of_baseline) for of_trial, of_baseline in values]
    return {
        "trial": trial.name,
        "baseline": baseline.name,
        "seeds": [seed for seed, *_ in runs],
        "trial_test": [of_trial for of_trial, _ in values],
        "baseline_test": [of_baseline for _, of_baseline in values],
        "mean": fmean(ahead),
        "std": stdev(ahead) if len(ahead) > 1 else None,
        "stderr": _stderr(out / baseline.run, out / trial.run),
    }


def _stderr(before: Path, after: Path) -> float | None:
    one, other = (StoredPredictions.load(run / PREDICTIONS) for run in (before, after))
    if one is None or other is None or not one.same_rows(other):
        return None
    return auc_change(one.logits, other.logits, one.labels, one.weights)[1]
