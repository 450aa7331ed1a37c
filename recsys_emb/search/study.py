"""The study of a search: opened or continued in Optuna's storages, its trials worked off by one process or several.

OUT/
  journal.log          the study, or one for each of several budgets, unless --storage names another place
  study.json           the name of the study, and where it is
  trials/NUMBER/       a run directory per trial; baselines/ and retrained/ likewise
  bases/HASH/          trained runs that post-training candidates are made of
  trials.parquet search.json best.yaml report.html      the result (results.py)
  BUDGET/              the same of each of several budgets; the search's own files tell them together
"""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from recsys_emb.errors import UserError
from recsys_emb.files import read_json, write_json
from recsys_emb.quiet import quiet_torch
from recsys_emb.search.config import Search
from recsys_emb.search.objective import (
    AT,
    BASELINE,
    FREE,
    OUT,
    OUTCOME,
    Objective,
    carry_out,
    orphaned,
    quiet_optuna,
)

IDENTITY = "search"
JOURNAL = "journal.log"
OWNER = "study.json"
PATIENCE = 200
"""So many free trials in a row end a search: what it draws is infeasible, or was tried before."""

Say = Callable[[Study, FrozenTrial], None]


@dataclass(frozen=True)
class Place:
    """Where a study is kept.

    Attributes:
        out: the folder of the search.
        name: of the study.
        url: of an SQL storage; None for a journal file in ``out``.
    """

    out: Path
    name: str
    url: str | None = None

    @property
    def text(self) -> str:
        """As messages and optuna-dashboard name the storage."""
        if self.url is None:
            return str(self.out / JOURNAL)
        try:
            return make_url(self.url).render_as_string(hide_password=True)
        except ArgumentError:
            return self.url

    def storage(self) -> BaseStorage:
        """Raises UserError when it cannot be opened."""
        if self.url is None:
            return JournalStorage(JournalFileBackend(str(self.out / JOURNAL)))
        if "://" not in self.url:
            raise UserError(f"--storage {self.url}: expected an SQL URL such as sqlite:///studies.db")
        try:
            return optuna.storages.get_storage(RDBStorage(self.url, heartbeat_interval=None))
        except (SQLAlchemyError, ImportError, ValueError) as error:
            raise UserError(f"--storage {self.text}: cannot be opened ({_reason(error)})") from None

    def load(self) -> Study:
        """The study, which exists."""
        return optuna.load_study(study_name=self.name, storage=self.storage())


def claim(place: Place) -> None:
    """Makes the folder that of one study. Raises UserError when it is another's: their trials would overwrite."""
    path, own = place.out / OWNER, {"study": place.name, "storage": place.text}
    if not path.exists():
        write_json(path, own)
    elif (known := read_json(path)) != own:
        raise UserError(
            f"--out {place.out}: belongs to study {known.get('study')} in {known.get('storage')}; "
            "give this one another --out"
        )


def open_study(search: Search, place: Place, resume: bool) -> Study:
    """A new study, or with ``resume`` the one to continue.

    Trials that were running when the search in this folder was killed are put back in the queue, under their numbers.

    Raises:
        UserError: the study exists and is not to be continued, or belongs to another search.
    """
    if place.url is None:
        _mend(place.out / JOURNAL)
    storage = place.storage()
    identity = search.identity
    if place.name in optuna.get_all_study_names(storage):
        if not resume:
            raise UserError(f"--study {place.name}: exists in {place.text}; continue it with --resume, or name another")
        study = optuna.load_study(study_name=place.name, storage=storage)
        _same_search(study, identity, place)
        _put_back(study, storage, place.out)
        return study
    most, least = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    directions = [most] if search.config.mode == "budget" else [most, least]
    study = optuna.create_study(study_name=place.name, storage=storage, directions=directions)
    study.set_user_attr(IDENTITY, identity)
    study.set_metric_names([f"valid_{search.task.main.key}", "serving_bytes"][: len(directions)])
    return study


def _mend(journal: Path) -> None:
    """Drops a last line that a full disk or a kill cut short; nobody else has the folder."""
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.is_file():
        return
    data = journal.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(journal, whole)


def _same_search(study: Study, identity: dict[str, Any], place: Place) -> None:
    known = study.user_attrs.get(IDENTITY, {})
    differing = sorted(key for key in {*known, *identity} if known.get(key) != identity.get(key))
    if differing:
        raise UserError(
            f"--study {place.name}: in {place.text} it belongs to another search (its {', '.join(differing)} differs); "
            f"give this one another {'--out' if place.url is None else '--study and --out'}"
        )


def _put_back(study: Study, storage: BaseStorage, out: Path) -> None:
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(OUT, str(out.resolve())) == str(out.resolve()):
            storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)


# -- samplers and pruners ---------------------------------------------------------------------------------------------


def sampler(name: str, seed: int, number: int) -> BaseSampler:
    """The sampler of one trial. Seeded by the trial's number, so that a continued study draws what one never stopped
    would have drawn."""
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if name == "random":
        return RandomSampler(seed=own)
    return TPESampler(seed=own) if name == "tpe" else NSGAIISampler(seed=own)


def pruner(name: str) -> BasePruner:
    """The pruner that the search's ``pruner`` key names."""
    return {"none": NopPruner, "median": MedianPruner, "halving": SuccessiveHalvingPruner}[name]()


# -- working off ------------------------------------------------------------------------------------------------------


def _reason(error: BaseException) -> str:
    """What a database says, on one line and without the statement."""
    return re.split(r" \[SQL| \(Background on", " ".join(str(error).split()))[0]


@dataclass(frozen=True)
class Job:
    """What a process works on; it can be sent to one.

    Attributes:
        search: what is searched.
        place: of the study.
        objective: what a trial is worth.
        trials: how many to draw, besides those that are enqueued; None draws none.
        say: is told of every finished trial.
    """

    search: Search
    place: Place
    objective: Objective
    trials: int | None
    say: Say

    def work(self) -> None:
        """Evaluates trials until there are enough, or nothing new is drawn. OSError when the storage fails."""
        with quiet_optuna():
            study = self.place.load()
            study.pruner = pruner(self.search.config.pruner)
            try:
                while not orphaned() and (trial := self._claim(study)) is not None:
                    self.say(study, carry_out(study, trial, self.search, self.objective))
            except StorageInternalError as error:
                reason = _reason(error.__cause__ or error)
                raise OSError(errno.EIO, f"cannot be read or written, {reason}", self.place.text) from error

    def _claim(self, study: Study) -> optuna.Trial | None:
        config = self.search.config
        with _one_at_a_time(self.place.out):
            known = study.get_trials(deepcopy=False)
            waiting = any(t.state == TrialState.WAITING for t in known)
            if not waiting and (self.trials is None or counted(known) >= self.trials or idle(known)):
                return None
            trial = study.ask()
            study.sampler = sampler(config.sampler, config.seed, trial.number)
            trial.set_user_attr(OUT, str(self.place.out.resolve()))
            if self.search.at:
                trial.set_user_attr(AT, self.search.at)
            return trial


def counted(trials: Sequence[FrozenTrial]) -> int:
    """Trials that were drawn and cost something, or still may."""
    own = (t for t in trials if t.state != TrialState.WAITING and BASELINE not in t.user_attrs)
    return sum(t.user_attrs.get(OUTCOME) not in FREE for t in own)


def idle(trials: Sequence[FrozenTrial]) -> bool:
    """The last trials were all free."""
    return len(trials) >= PATIENCE and all(t.user_attrs.get(OUTCOME) in FREE for t in trials[-PATIENCE:])


@contextmanager
def _one_at_a_time(out: Path) -> Iterator[None]:
    """Processes of one search claim trials one after another."""
    with open(out / "CLAIM", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def work_off(jobs: Sequence[Job], processes: int) -> None:
    """Works one job after another in this process, or in several new ones that share the processors.

    Raises:
        UserError, OSError, RuntimeError: what ended a process; the others are stopped, and every trial of theirs can be
            continued.
    """
    if processes == 1:
        for job in jobs:
            job.work()
        return
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    threads = max(1, torch.get_num_threads() // processes)
    workers = [context.Process(target=_work_apart, args=(jobs, threads, errors)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    try:
        while (going := [w for w in workers if w.is_alive()]) and not any(w.exitcode for w in workers):
            wait([w.sentinel for w in going])
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()
    if any(w.exitcode for w in workers):
        raise ChildProcessError(errno.ECHILD, "a process of the search was killed") if errors.empty() else errors.get()


def _work_apart(jobs: Sequence[Job], threads: int, errors: Any) -> None:
    quiet_torch()
    torch.set_num_threads(threads)
    try:
        for job in jobs:
            job.work()
    except KeyboardInterrupt:
        raise SystemExit(1) from None  # the search says it
    except UserError as error:
        errors.put(error)
        raise SystemExit(1) from None
    except OSError as error:
        errors.put(OSError(error.errno, error.strerror or str(error), error.filename))
        raise SystemExit(1) from None
    except Exception as error:
        errors.put(RuntimeError(f"{type(error).__name__}: {error}"))
        raise SystemExit(1) from None
