"""Trained runs that post-training candidates are made of: each is trained once, however many candidates there are."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from recsys_emb.config import RunConfig
from recsys_emb.embeddings.base import EmbeddingBackend, Stats
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.embeddings.posttraining.base import Sensitivity
from recsys_emb.errors import settings_written_as
from recsys_emb.models.base import CTRModel
from recsys_emb.training import runtime
from recsys_emb.training.continuation import begin_from
from recsys_emb.training.run import restore, train
from recsys_emb.training.run_dir import RunDir
from recsys_emb.training.scoring import Scorer
from recsys_emb.training.stage_runner import error_costs, split_loader
from recsys_emb.training.task import Task, task_of
from recsys_emb.training.trainer import Reporter

SCORED_ROWS = 100_000
"""Validation rows that a candidate is scored on, of larger splits; about as many as tell 0.0001 of AUC."""


@dataclass(frozen=True)
class _Loaded:
    """A trained model, and what it takes to score what is made of its embedding.

    Attributes:
        folder: of the run.
        task: of the run.
        model: with the embedding that was trained.
        form: the serving form of that embedding, which methods make smaller.
        stats: counts of ids.
        costs: finds out what errors cost, once.
        scorer: of the model.
    """

    folder: Path
    task: Task
    model: CTRModel
    form: EmbeddingBackend[Any]
    stats: Stats
    costs: Callable[[], Sensitivity]
    scorer: Scorer


class Bases:
    """Trains bases in ``out/bases`` and scores what post-training methods make of them.

    Args:
        out: the folder of the search.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._trained: set[Path] = set()
        self._loaded: _Loaded | None = None  # the last one: they may be large

    def folder(self, config: RunConfig) -> Path:
        """Where the base of a config is, trained or not."""
        text = uncompressed(config).model_dump_json()
        return self.out / "bases" / hashlib.blake2b(text.encode(), digest_size=4).hexdigest()

    def trained(self, config: RunConfig, reporter: Reporter) -> RunDir:
        """The base of a config, all stages of it complete; the test split is left alone. Others wait for who trains."""
        folder = self.folder(config)
        if folder not in self._trained:
            with _alone(folder):
                train(uncompressed(config), folder, reporter, resume=True, test=False)
            self._trained.add(folder)
        return RunDir.open(folder)

    def begin(self, config: RunConfig, folder: Path, reporter: Reporter) -> None:
        """Makes the folder of a run that goes on where its base ended; one that is there already is left alone."""
        begin_from(self.trained(config, reporter), folder, config, config.data.open())

    def score(self, config: RunConfig, reporter: Reporter) -> tuple[float, int]:
        """What the compressed form is worth before anything is trained on.

        Returns:
            the main metric on validation rows, and bytes.

        Raises:
            BudgetTooSmall: of the compact section.
        """
        made, base = config.compact, self._load(self.trained(config, reporter), config)
        assert made is not None
        with settings_written_as("compact.{}".format):
            form = compress(base.form, made.method, made.budget, base.stats, made.options, base.costs)
        trained = base.model.embedding.backend
        base.model.embedding.backend = form.to(trained.device)
        try:
            return base.task.main.score(base.scorer()), form.serving_bytes()
        finally:
            base.model.embedding.backend = trained

    def _load(self, run: RunDir, config: RunConfig) -> _Loaded:
        if self._loaded is None or self._loaded.folder != run.path:
            self._loaded = None
            dataset, task = config.data.open(), task_of(config)
            model, precision = restore(run)
            runtime.configure(config.seed, precision)
            form = model.eval().embedding.backend.compact()
            costs = cache(partial(error_costs, model, dataset, config))
            scorer = Scorer(task, model, split_loader(dataset, "valid", config), SCORED_ROWS, precision)
            self._loaded = _Loaded(run.path, task, model, form, dataset.stats(), costs, scorer)
        return self._loaded


def uncompressed(config: RunConfig) -> RunConfig:
    """A config without its compact section."""
    return config.model_copy(update={"compact": None})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
