"""Carries out a run's stages one after another; it knows their kinds, and no method.

Each stage has its checkpoints (checkpoint.py) in checkpoints/STAGE/; one without steps leaves a single one. When it is
complete, ``stage.json`` beside them says what it gave.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any, Protocol

import torch

from recsys_emb.config import RunConfig
from recsys_emb.data.batches import BatchLoader, OneIn
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.store import EncodedDataset
from recsys_emb.distributed.world import World
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec
from recsys_emb.embeddings.counted_l2 import CountedL2
from recsys_emb.embeddings.finetune import TrainableForm
from recsys_emb.embeddings.forms import Form
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.embeddings.posttraining.base import Sensitivity
from recsys_emb.embeddings.stages import Compact, Search, Stage, Train
from recsys_emb.errors import UserError, settings_written_as
from recsys_emb.files import one_line, read_json, read_json_as, write_json
from recsys_emb.models.base import CTRModel, build_model
from recsys_emb.training.checkpoint import MODEL, Checkpoints, check, load_model
from recsys_emb.training.held_out import HeldOut
from recsys_emb.training.main_metric import MainMetric
from recsys_emb.training.metrics import Predictions
from recsys_emb.training.predict import predict
from recsys_emb.training.run_dir import MetricsLog, NoLog, RunDir
from recsys_emb.training.scoring import Scorer, sampled_batches
from recsys_emb.training.sensitivity import sensitivity
from recsys_emb.training.stop import StopMark
from recsys_emb.training.task import Task, task_of
from recsys_emb.training.total_budget import beside, compressed_within, fingerprint_bits
from recsys_emb.training.trainer import Reporter, Trainer, TrainingState

SENSITIVITY_ROWS = 200_000
"""Training rows that say what errors of embedding rows cost."""


@dataclass
class Outcome:
    """What a stage gave; the fields after ``valid`` are of trainings."""

    name: str
    seconds: float
    valid: dict[str, float | None]
    steps: int = 0
    epochs: int = 0
    best_step: int = 0
    samples: int = 0
    step_seconds: float = 0.0
    training_bytes: int = 0

    def row(self, main: MainMetric) -> dict[str, Any]:
        """What a report says of a stage."""
        value = main.of(self.valid)
        return {"name": self.name, "seconds": self.seconds, "steps": self.steps, f"valid_{main.key}": value}


class Beginning(Protocol):
    """What a run's first training begins with (warm_start.py)."""

    def load(self, model: CTRModel) -> None:
        """Gives the new model its weights."""

    def load_optimizer(self, trainer: Trainer) -> None:
        """Gives the optimizer its state."""


@dataclass
class StageRunner:
    """Takes a run from where its folder stands to the end of its last stage.

    A complete stage is not done again. A training continues from its last checkpoint; a search or a compaction starts
    over. Every stage but the first seeds torch anew, so that a resumed run gives what an uninterrupted one gives.

    Args:
        run: the folder.
        dataset: the run's.
        spec: the tables.
        first: builds the backend that the run begins with.
        stages: of at least one, under different names.
        device, precision: where and how to compute.
        reporter: is told of steps and evaluations.
        world: the processes that carry the run out together; one of them writes the folder.
        stop: looked at between steps and between batches.
        warm_start: what the first training begins with, where not with new weights.
    """

    run: RunDir
    dataset: EncodedDataset
    spec: GroupSpec
    first: Callable[[], EmbeddingBackend[Any]]
    stages: Sequence[Stage]
    device: torch.device
    precision: str
    reporter: Reporter
    world: World = field(default_factory=World)
    stop: StopMark = field(default_factory=StopMark)
    warm_start: Beginning | None = None
    config: RunConfig = field(init=False)
    task: Task = field(init=False)

    def __post_init__(self) -> None:
        names = [s.name for s in self.stages]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"stages need names that differ, got {names}")
        self.config = self.run.config
        self.task = task_of(self.config)

    def finish(self) -> tuple[CTRModel, list[Outcome]]:
        """Carries out what is left; the trained model and what each stage gave."""
        outcomes = []
        model: CTRModel | None = None
        for number, stage in enumerate(self.stages):
            file = self.run.checkpoints(stage.name) / "stage.json"
            if file.is_file():
                outcomes.append(read_json_as(file, Outcome))
                continue
            model = self._begin(number, model)
            outcomes.append(self._run_stage(number, model))
            if self.world.is_rank_zero:
                write_json(file, asdict(outcomes[-1]))
        return model or self._result(len(self.stages) - 1), outcomes

    # -- what a stage starts from -------------------------------------------------------------------------------------

    def _begin(self, number: int, model: CTRModel | None) -> CTRModel:
        """The model that a stage starts with; ``model`` is the result of the one before, where it is in memory."""
        if number == 0:
            model = self._new()
            if self.warm_start is not None and self._checkpoints(number).last() is None:
                self.warm_start.load(model)
            return model
        init = self.stages[number].init
        if init.as_it_is:
            model = model or self._result(number - 1)
        else:
            # Only the form of the embedding goes on; its weights and the model's are older, or new.
            form = (model or self._result(number - 1)).embedding.backend
            torch.manual_seed(self._seed(number))
            model = self._from(self._last_training(number)) if init.weights else self._new()
            form.inherit(model.embedding.backend)
            model.embedding.backend = form
        torch.manual_seed(self._seed(number))
        return model

    def _new(self) -> CTRModel:
        model = build_model(self.config.model, self.dataset.schema, self.first())
        return self.world.prepare_model(model).to(self.device)

    def _from(self, training: str) -> CTRModel:
        """The model as a training started."""
        model = self._model(training)
        initial = Checkpoints(self.run.checkpoints(training)).initial
        check(initial, MODEL)
        load_model(model, initial)
        return model

    def _result(self, number: int) -> CTRModel:
        """The model as a complete stage left it."""
        name = self.stages[number].name
        model = self._model(name)
        best = Checkpoints(self.run.checkpoints(name)).best()
        assert best is not None  # a complete stage has one
        load_model(model, best)
        return model

    def _model(self, stage: str) -> CTRModel:
        return stage_model(self.run, self.dataset.schema, self.spec, stage, self.device, self.world)

    def _last_training(self, before: int) -> str:
        trainings = [s.name for s in self.stages[:before] if isinstance(s, Train)]
        if not trainings:
            raise ValueError(f"stage {self.stages[before].name!r} carries what no training before it left")
        return trainings[-1]

    def _seed(self, number: int) -> int:
        return self.config.seed + (number << 32)

    def _checkpoints(self, number: int) -> Checkpoints:
        return Checkpoints(self.run.checkpoints(self.stages[number].name))

    # -- the kinds of stages ------------------------------------------------------------------------------------------

    def _run_stage(self, number: int, model: CTRModel) -> Outcome:
        stage = self.stages[number]
        if isinstance(stage, Train):
            return self._train(number, stage, model)
        if self.world.size > 1:
            raise UserError(
                f"stage {stage.name!r} of {model.embedding.backend.name} needs whole tables: carry it out in one "
                "process, by --resume without torchrun; the stages after it may use several again"
            )
        started = time.perf_counter()
        model.eval()
        old = model.embedding.backend
        if isinstance(stage, Search):
            with self.run.log(stage.name, 0, 0) as log:
                new = old.search(self._score(model, stage, log), self._seed(number))
        else:
            assert isinstance(stage, Compact)
            new = self._compact(stage, model)
        model.embedding.backend = new.to(self.device)
        record_backend(self.run, stage.name, new)
        valid = self.task.metrics(predict(model, self.stop.watch(self._loader("valid")), self.precision))
        Checkpoints(self.run.checkpoints(stage.name)).save(0, model.state_dict(), {}, {"valid": valid}, best=0)
        return Outcome(stage.name, time.perf_counter() - started, valid)

    def _compact(self, stage: Compact, model: CTRModel) -> EmbeddingBackend[Any]:
        form = trained = model.embedding.backend.compact()
        if stage.method is not None:
            costs = cache(partial(error_costs, model, self.dataset, self.config))
            with settings_written_as("compact.{}".format):
                rest = partial(beside, self.config, self.dataset, trained.spec, fingerprint_bits(self.config))
                method, stats, options = stage.method, self.dataset.stats(), stage.options
                form = compressed_within(
                    stage.budget, rest, lambda budget: compress(trained, method, budget, stats, options, costs)
                )
        return TrainableForm(form) if stage.trainable else form

    def _train(self, number: int, stage: Train, model: CTRModel) -> Outcome:
        checkpoints = Checkpoints(self.run.checkpoints(stage.name))
        initial = model.state_dict() if self._begins_again(number) else None  # collected from all processes
        if self.world.is_rank_zero:
            record_backend(self.run, stage.name, model.embedding.backend)
            if initial is not None:
                checkpoints.save_initial(initial)
        del initial
        self.world.seed_by_rank(self._seed(number))
        held_out, only = self._held_out(stage)
        loaders = self._loader("train", shuffle=True, only=only), self._loader("valid")
        settings, world, stop = self.config.training.model_copy(update=stage.settings), self.world, self.stop
        if settings.l2_by_count:
            if world.size > 1:
                raise UserError("training.l2_by_count counts an id once a batch: train in one process, or leave it out")
            tables, stats = model.embedding.backend.spec.tables, self.dataset.stats()
            model.embedding.l2 = CountedL2(tables, stats, settings.l2_by_count, self.device)
        trainer = Trainer(self.task, model, settings, *loaders, checkpoints, self.precision, world, stop, held_out)
        trainer.keep_start = stage.keep_start
        if stage.distil is not None:
            trainer.teacher, trainer.distil = self._teacher(stage.distil.teacher), stage.distil.weight
        if number and stage.init.optimizer:
            best = Checkpoints(self.run.checkpoints(self._last_training(number))).best()
            assert best is not None
            trainer.load_optimizer(best)
        if not number and self.warm_start is not None and self.config.training.keep_optimizer:
            self.warm_start.load_optimizer(trainer)
        trainer.resume()
        with self._log(stage.name, trainer.progress) as log:
            p = trainer.fit(log, self.reporter)
        return Outcome(
            name=stage.name,
            seconds=p.total_seconds,
            valid=p.best_metrics,
            steps=p.step,
            epochs=p.epoch,
            best_step=p.best_step,
            samples=p.samples,
            step_seconds=p.step_seconds,
            training_bytes=trainer.training_bytes(),
        )

    def _held_out(self, stage: Train) -> tuple[HeldOut | None, OneIn | None]:
        """What architecture steps learn from, and which rows are left for the weights."""
        if stage.bilevel is None:
            return None, None
        k = stage.bilevel.one_in
        if len(self.dataset.split("train")) < k:
            raise UserError(f"data.path {self.dataset.path}: stage {stage.name!r} needs {k} training rows or more")
        held = self._loader("train", shuffle=True, only=OneIn(k))
        return HeldOut(held, stage.bilevel.every), OneIn(k, others=True)

    def _teacher(self, stage: str) -> CTRModel:
        """The model that a complete stage left, to learn from."""
        return self._result([s.name for s in self.stages].index(stage)).eval().requires_grad_(False)

    def _log(self, stage: str, done: TrainingState) -> AbstractContextManager[MetricsLog]:
        return self.run.log(stage, done.step, done.evaluated) if self.world.is_rank_zero else nullcontext(NoLog())

    def _begins_again(self, number: int) -> bool:
        """Whether a later stage starts from this training's initial weights."""
        later = enumerate(self.stages[number + 1 :], number + 1)
        name = self.stages[number].name
        return any(s.init.checkpoint == "initial" and self._last_training(i) == name for i, s in later)

    def _score(self, model: CTRModel, stage: Search, log: MetricsLog) -> Callable[[], float]:
        """What a search maximises; every call is logged."""
        scorer = Scorer(self.task, model, self._loader("valid"), stage.rows, self.precision)
        calls = 0

        def score() -> float:
            nonlocal calls
            calls += 1
            self.stop.check()
            found = scorer()
            log.write("search", calls, 0, **{self.task.main.key: self.task.main.score(found)})
            return found

        return score

    def _loader(self, split: str, shuffle: bool = False, only: OneIn | None = None) -> BatchLoader:
        return split_loader(self.dataset, split, self.config, shuffle, self.world, only)


def split_loader(
    dataset: EncodedDataset,
    split: str,
    config: RunConfig,
    shuffle: bool = False,
    world: World = World(),  # noqa: B008  it has no state
    only: OneIn | None = None,
) -> BatchLoader:
    """The batches of a split as a run's config says, or this process's parts of them.

    Raises:
        UserError: no such split, or labels that are not the task's.
    """
    rows = dataset.split(split)
    task_of(config).check(rows)
    return BatchLoader(
        rows,
        dataset.schema,
        config.training.batch_size,
        shuffle=shuffle,
        seed=config.seed,
        rank=world.rank,
        ranks=world.size,
        only=only,
    )


def predict_split(
    model: CTRModel,
    dataset: EncodedDataset,
    split: str,
    config: RunConfig,
    precision: str,
    world: World = World(),  # noqa: B008  it has no state
) -> Predictions:
    """Predictions of a split: in its stored order in one process, one process's after another's in several."""
    return predict(model, split_loader(dataset, split, config, world=world), precision, world)


def error_costs(model: CTRModel, dataset: EncodedDataset, config: RunConfig) -> Sensitivity:
    """What errors of a model's embedding rows cost, on some rows of the training split, always the same."""
    loader = split_loader(dataset, "train", config)
    return sensitivity(model, sampled_batches(loader, SENSITIVITY_ROWS))


# -- which backend a stage has ----------------------------------------------------------------------------------------


def record_backend(run: RunDir, stage: str, backend: EmbeddingBackend[Any]) -> None:
    """Notes in ``embedding.json`` what the stage's checkpoints hold."""
    file = run.path / "embedding.json"
    known = read_json(file) if file.is_file() else {}
    known[stage] = Form.of(backend, run.config.embedding.backend).model_dump(mode="json")
    write_json(file, known)


def recorded_stages(run: RunDir) -> list[str]:
    """The stages that the run has come to, in their order."""
    file = run.path / "embedding.json"
    return list(read_json(file)) if file.is_file() else []


def stage_model(
    run: RunDir,
    schema: DatasetSchema,
    spec: GroupSpec,
    stage: str,
    device: torch.device,
    world: World = World(),  # noqa: B008  it has no state
) -> CTRModel:
    """A model of the shapes that the stage's checkpoints hold; its weights are to be loaded."""
    file = run.path / "embedding.json"
    try:
        form = Form.model_validate(read_json(file)[stage])
        backend = world.build(partial(form.build, spec), device)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: no sizes of stage {stage!r} ({one_line(error)})") from None
    model = build_model(run.config.model, schema, backend)
    return world.prepare_model(model).to(device)
