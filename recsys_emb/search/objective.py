"""What a trial is worth: bytes from the plan, before anything is trained; then the validation metric of a run."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Protocol

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.errors import BudgetTooSmall, UserError
from recsys_emb.search.bases import Bases
from recsys_emb.search.config import Search, without_budget
from recsys_emb.training.main_metric import MainMetric
from recsys_emb.training.run import plan, train
from recsys_emb.training.trainer import Reporter, TrainingState

COMPLETE, PRUNED, INFEASIBLE, FAILED, DUPLICATE = "complete", "pruned", "infeasible", "failed", "duplicate"
FREE = (INFEASIBLE, DUPLICATE)
"""Outcomes that cost nothing and do not count as trials."""

OUTCOME = "outcome"  # names of a trial's user attributes
CONFIG = "config"
BASELINE = "baseline"
RUN = "run"
CANDIDATE = "candidate"
OUT = "out"
SCORE = "score"
AT = "at"  # of one of several budgets
SEED_OF = "seed_of"  # the trial or baseline that is trained again, from another seed


def name_of(trial: FrozenTrial) -> str:
    """A baseline's name, else the number that it was drawn, or scored, under; with a seed that is not the base's."""
    attrs = trial.user_attrs
    if SEED_OF in attrs:
        return f"{attrs[SEED_OF]}, seed {attrs[CONFIG]['seed']}"
    name = attrs.get(BASELINE) or f"trial {attrs.get(CANDIDATE, trial.number)}"
    return f"{name} at {attrs[AT]}" if attrs.get(AT) else name


class Infeasible(Exception):
    """More bytes than the budget; ``excess`` is their ratio to it, less 1, or 1 where a method names another reason."""

    def __init__(self, message: str, bytes: int, excess: float) -> None:
        super().__init__(message)
        self.bytes = bytes
        self.excess = excess


class Duplicate(Exception):
    """The same config as an earlier trial."""

    def __init__(self, original: FrozenTrial) -> None:
        super().__init__(f"the same as {name_of(original)}")
        self.original = original


@dataclass(frozen=True)
class Result:
    """The figures of a complete trial.

    Attributes:
        value: the task's main metric on the validation split.
        serving_bytes: of the embedding.
        seconds: of training; None where only the evaluation took time.
        scored: the value is that of a candidate that was not trained on its own.
    """

    value: float
    serving_bytes: int
    seconds: float | None = None
    scored: bool = False


class Objective(Protocol):
    """Evaluates trials."""

    def __call__(self, study: Study, trial: Trial, config: RunConfig) -> Result:
        """Raises Infeasible, Duplicate, TrialPruned, or what went wrong."""


@dataclass(frozen=True)
class TrainObjective:
    """Trains a run in ``out/<the trial's run>``; a killed one is continued.

    A config with a compact section goes on where its trained base ended. While it is only drawn, it is scored as it is
    before it is trained on, and has no run.

    Attributes:
        search: what is searched.
        out: the folder of the search.
        reporter: is told how each training goes.
        bases: trained runs that many candidates are made of.
    """

    search: Search
    out: Path
    reporter: Reporter
    bases: Bases

    def __call__(self, study: Study, trial: Trial, config: RunConfig) -> Result:
        planned = planned_bytes(self.search, config)
        trial.set_user_attr("serving_bytes", planned)
        find_original(study, trial)
        drawn = not trial.user_attrs.keys() & {BASELINE, CANDIDATE, SEED_OF}
        reporter = TrialReporter(trial, self.search.task.main, self.reporter, drawn and self._prunes(config))
        if drawn and config.compact is not None:
            value, size = self.bases.score(config, reporter)
            return Result(value, self._checked(size), scored=True)
        trial.set_user_attr(RUN, trial.user_attrs.get(RUN, f"trials/{self.search.number(trial.number)}"))
        folder = self.out / trial.user_attrs[RUN]
        try:
            if config.compact is not None:
                self.bases.begin(config, folder, reporter)
            report = train(config, folder, reporter, resume=True, test=False)
        except optuna.TrialPruned:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # nobody will go on with it
            raise
        value = report[f"valid_{self.search.task.main.key}"]
        return Result(value, self._checked(report["serving_bytes"]), report["train_seconds"])

    def _checked(self, size: int) -> int:
        """Raises Infeasible when it is more than the budget."""
        if self.search.budget is not None and size > self.search.budget:
            raise _too_large(size, self.search.budget)
        return size

    def _prunes(self, config: RunConfig) -> bool:
        """Not in methods of several stages, whose first is no sign of how the last one ends."""
        if self.search.config.pruner == "none" or config.compact is not None:
            return False
        return len(backend_registry.get(config.embedding.backend).stages(config.embedding.options)) == 1


def planned_bytes(search: Search, config: RunConfig) -> int | None:
    """What the plan says a run takes when served; None where a method finds its size by fitting.

    Raises:
        Infeasible: more than the budget, the search's or the config's own.
        UserError: the config does not fit the dataset.
    """
    budget = search.budget
    try:
        size = plan(config, search.dataset).build("meta").serving_bytes()
    except BudgetTooSmall as error:
        if budget is not None and error.min_bytes > budget:
            raise _too_large(error.min_bytes, budget) from None
        raise _infeasible(error, error.min_bytes, budget) from None
    except UserError as error:
        try:
            size = plan(without_budget(config), search.dataset).build("meta").serving_bytes()
        except UserError:
            raise error from None  # no matter of bytes
        raise _infeasible(error, size, budget) from None
    if config.compact is not None:
        return None
    if budget is not None and size > budget:
        raise _too_large(size, budget)
    return size


def _infeasible(error: UserError, size: int, budget: int | None) -> Infeasible:
    return Infeasible(str(error), size, size / budget - 1 if budget is not None and size > budget else 1.0)


def _too_large(size: int, budget: int) -> Infeasible:
    return Infeasible(f"{size:,} bytes, the budget is {budget:,}", size, size / budget - 1)


def find_original(study: Study, trial: Trial) -> None:
    """Raises Duplicate when an earlier trial has, or is being trained with, the same config."""
    own = trial.user_attrs[CONFIG]
    for other in study.get_trials(deepcopy=False):
        if other.number >= trial.number:
            break
        attrs = other.user_attrs
        if attrs.get(CONFIG) == own and attrs.get(OUTCOME, COMPLETE) not in FREE:
            raise Duplicate(other)


def orphaned() -> bool:
    """This is a process of a search that was killed."""
    parent = parent_process()
    return parent is not None and not parent.is_alive()


class TrialReporter:
    """Passes evaluations on to Optuna, which may end the trial. A step's number is how many rows were trained on."""

    def __init__(self, trial: Trial, main: MainMetric, inner: Reporter, prunes: bool) -> None:
        self.trial = trial
        self.main = main
        self.inner = inner
        self.prunes = prunes
        frozen = trial.study.get_trials(deepcopy=False)[trial.number]
        self.known = set(frozen.intermediate_values)  # of a trial that is continued

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        if orphaned():
            raise SystemExit(1)
        self.inner.step(progress, steps, loss)

    def evaluation(self, progress: TrainingState, figures: Mapping[str, float | None], best: bool) -> None:
        self.inner.evaluation(progress, figures, best)
        if not self.prunes:
            return
        value = self.main.of(figures)
        if progress.samples not in self.known:
            self.trial.report(self.main.score(value), progress.samples)
        if self.trial.should_prune():
            raise optuna.TrialPruned(f"{self.main.title} {value:.5f} after {progress.samples:,} rows")


# -- what becomes of a trial ------------------------------------------------------------------------------------------


def carry_out(study: Study, trial: Trial, search: Search, objective: Objective) -> FrozenTrial:
    """Evaluates a trial and records what became of it.

    Whatever the machine or the user did (no space left, Ctrl-C) leaves the trial as running, to be continued; any other
    error fails it with its message.
    """
    started = time.perf_counter()
    values: list[float] | None = None
    state, outcome, message = TrialState.FAIL, FAILED, ""
    facts: dict[str, Any] = {}
    try:
        config = _config(trial, search)
        result = objective(study, trial, config)
    except Infeasible as infeasible:
        state, outcome, message = TrialState.PRUNED, INFEASIBLE, str(infeasible)
        trial.set_constraint("budget", infeasible.excess)
        facts = {"serving_bytes": infeasible.bytes}
    except Duplicate as duplicate:
        original, message = duplicate.original, str(duplicate)
        outcome = DUPLICATE
        kept = (RUN, "serving_bytes", search.task.main.key, SCORE)
        facts = {k: original.user_attrs[k] for k in kept if k in original.user_attrs}
        if original.state == TrialState.COMPLETE:
            state, values = TrialState.COMPLETE, list(original.values)
    except optuna.TrialPruned as pruned:
        state, outcome, message = TrialState.PRUNED, PRUNED, str(pruned)
    except Exception as error:
        cause = next((e for e in _chain(error) if isinstance(e, OSError)), None)
        if cause is not None:
            raise cause from error
        message = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, UserError):
            message = f"{type(error).__name__}: {message}"
    else:
        state, outcome = TrialState.COMPLETE, COMPLETE
        values = search_values(search, result)
        facts = {SCORE if result.scored else search.task.main.key: result.value, "serving_bytes": result.serving_bytes}
        facts |= {} if result.seconds is None else {"seconds": result.seconds}
    facts |= {OUTCOME: outcome} | ({"message": message} if message else {})
    for key, value in ({"seconds": time.perf_counter() - started} | facts).items():
        trial.set_user_attr(key, value)
    return study.tell(trial, values, state)


def search_values(search: Search, result: Result) -> list[float]:
    """The objectives, as many as the mode has; more of the first is better."""
    score = search.task.main.score(result.value)
    return [score] if search.config.mode == "budget" else [score, float(result.serving_bytes)]


def _config(trial: Trial, search: Search) -> RunConfig:
    """The config that the trial was given, or what it draws; noted, to compare it and to train it again."""
    if CONFIG in trial.user_attrs:
        return parse_config(trial.user_attrs[CONFIG])
    config = search.run_config(search.space.suggest(trial))
    trial.set_user_attr(CONFIG, as_json(config))
    return config


def as_json(config: RunConfig) -> dict[str, Any]:
    """The resolved config as JSON keeps it."""
    return json.loads(config.model_dump_json())


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Optuna says nothing of its own; what a search has to say, it says itself."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
