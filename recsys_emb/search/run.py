"""A search from its config to its result."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import Trial

from recsys_emb.config import RunConfig
from recsys_emb.errors import UserError
from recsys_emb.files import unused
from recsys_emb.search.bases import Bases
from recsys_emb.search.choosing import best_of_each
from recsys_emb.search.config import Search
from recsys_emb.search.finished import collected
from recsys_emb.search.objective import (
    Infeasible,
    Objective,
    Result,
    TrainObjective,
    find_original,
    planned_bytes,
    quiet_optuna,
)
from recsys_emb.search.queue import enqueue_baselines, enqueue_best, enqueue_tuned
from recsys_emb.search.results import finish
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
        assert size is not None  # of widths
        find_original(study, trial)
        return Result(self.search.task.main.score(self.supernet.score(_widths(config))), size, scored=True)


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
        trials: how many to draw and evaluate in all, as many for each of several budgets; infeasible and repeated ones
            cost nothing and do not count, nor do baselines.
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
        claim(Place(out, name, storage))
        outer, bases = Place(out, f"{name}-trained", storage), Bases(out)
        parts = search.by_budget()
        places = [Place(out, f"{name}-{part.at}" if part.at else name, storage) for part in parts]
        studies = [open_study(part, place, resume) for part, place in zip(parts, places)]
        outside = open_study(search, outer, resume)
        for part, study in zip(parts, studies):
            if search.space.widths:
                _check_reach(part)
            enqueue_baselines(part, study, outside)
        objectives: list[Objective] = [TrainObjective(part, out, reporter, bases) for part in parts]
        supernet: SupernetObjective | None = None
        if search.config.scoring == "supernet":
            choices = sorted({w for p in search.space.params for w in p.choices})
            Supernet.train(search.base, out / "supernet", reporter, resume=True, choices=choices)
            objectives = [SupernetObjective(part, out / "supernet") for part in parts]
            supernet = SupernetObjective(search, out / "supernet")

        def work_off_queue(drawing: Sequence[Job] = ()) -> None:
            """What is queued outside of what is drawn, and then that."""
            queued = Job(search, outer, TrainObjective(search, out, reporter, bases), None, say)
            work_off([queued, *drawing], jobs)

        share = -(-trials // len(parts))
        work_off_queue([Job(*each, share, say) for each in zip(parts, places, objectives)])
        for part, study in zip(parts, studies):
            enqueue_best(part, study, outside, None if supernet is None else supernet.supernet)
            enqueue_tuned(part, study, outside)
        work_off_queue()
        if seeds > 1:
            for came_to in collected(search, out, studies, outside):
                if (rivals := best_of_each(came_to.search, came_to.fitting)) is not None:
                    enqueue_seeds(outside, rivals, seeds)
            work_off_queue()
        return finish(search, out, studies, outside, bases, share, seeds)


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


def default_out(path: Path) -> Path:
    """``runs/search-NAME``, numbered where it is taken."""
    return unused(Path("runs") / f"search-{path.stem}")
