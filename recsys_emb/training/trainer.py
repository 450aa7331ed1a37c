"""The training loop: steps, evaluations, the plateau rule, checkpoints. It knows no model and no embedding method."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from recsys_emb.config import TrainingConfig
from recsys_emb.data.batches import Batch, BatchLoader, on_device
from recsys_emb.distributed.world import World
from recsys_emb.errors import UserError
from recsys_emb.files import one_line, read_json, read_json_as
from recsys_emb.models.base import CTRModel
from recsys_emb.training.checkpoint import OPTIMIZER, STATE, Checkpoints, check, load_model, load_tensors
from recsys_emb.training.held_out import HeldOut
from recsys_emb.training.losses import Losses
from recsys_emb.training.model_optimizer import ModelOptimizer
from recsys_emb.training.predict import predict
from recsys_emb.training.run_dir import MetricsLog
from recsys_emb.training.runtime import autocast
from recsys_emb.training.stop import StopMark, Stopped
from recsys_emb.training.task import Task, TaskLosses


@dataclass
class TrainingState:
    """Where a stage stands; everything that a resumed run needs besides tensors."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch
    step: int = 0  # finished batches in all
    evaluated: int = 0  # step of the last evaluation
    carried_steps: int = 0  # steps that the optimizer had behind it when the stage began
    learning_rate: float = 0.0
    best_score: float | None = None  # the task's main metric, signed so that more is better
    best_step: int = 0
    best_metrics: dict[str, float | None] = field(default_factory=dict)
    flat: int = 0  # evaluations since the last gain
    finished: bool = False
    step_seconds: float = 0.0
    total_seconds: float = 0.0
    samples: int = 0

    @property
    def samples_per_second(self) -> float:
        return self.samples / self.step_seconds if self.step_seconds else 0.0


class Reporter(Protocol):
    """Who is told how training goes, to show it."""

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        """After a batch; ``steps`` is the most there can be."""

    def evaluation(self, progress: TrainingState, figures: Mapping[str, float | None], best: bool) -> None:
        """After an evaluation on the validation split."""

    def warn(self, message: str) -> None:
        """Before the first step, when what was asked for is likely to disappoint."""


class Trainer:
    """Trains a model for one stage.

    Args:
        task: gives the loss, and the metric that picks the best weights.
        model: on its device.
        config: the training section.
        train, valid: the splits; the test split is never given.
        checkpoints: where the stage's checkpoints go; the newest is continued.
        precision: ``fp32``, ``tf32`` or ``bf16``.
        world: the processes that train together, each on its part of every batch.
        stop: looked at after every step and between the batches of an evaluation.
        held_out: rows that architecture parameters take steps of their own on; without, they are trained like weights.

    Attributes:
        teacher: a model whose predictions are learned from, too.
        distil: the share of the loss that is the distance to them.
        keep_start: the weights at the start are evaluated, and stay the best ones until they are beaten.
    """

    teacher: CTRModel | None = None
    distil = 0.0
    keep_start = False

    log_every = 50
    """Steps after which the losses are looked at; before that nobody waits for a card."""
    steps_between_evaluations = 20
    """At least so many steps, or the plateau rule ends a training that has hardly begun."""

    def __init__(
        self,
        task: Task,
        model: CTRModel,
        config: TrainingConfig,
        train: BatchLoader,
        valid: BatchLoader,
        checkpoints: Checkpoints,
        precision: str,
        world: World = World(),  # noqa: B008  it has no state
        stop: StopMark | None = None,
        held_out: HeldOut | None = None,
    ) -> None:
        self.task = task
        self.model = model
        self.backend = model.embedding.backend
        self.config = config
        self.train = train
        self.valid = valid
        self.checkpoints = checkpoints
        self.precision = precision
        self.world = world
        self.stop = stop or StopMark()
        self.device = next(model.parameters()).device
        self.held_out = held_out
        self.optimizer = ModelOptimizer(model, config, bilevel=held_out is not None)
        self.losses = Losses(world.all_reduce_mean)
        self.progress = TrainingState(learning_rate=config.learning_rate)
        self.steps = min(config.epochs * len(train), config.max_steps or config.epochs * len(train))

    # -- the loop -----------------------------------------------------------------------------------------------------

    def fit(self, log: MetricsLog, reporter: Reporter) -> TrainingState:
        """Trains until the epochs, the steps or the patience are used up, then loads the best weights.

        Raises:
            UserError: a loss is not finite, found ``log_every`` steps later at most and before anything is saved; the
                last checkpoint stays as it was.
            Stopped: somebody asked to stop; a checkpoint says where training stands.
        """
        p = self.progress
        self._started = time.perf_counter() - p.total_seconds
        try:
            self._train(log, reporter)
        except Stopped:
            self._save()
            raise
        p.total_seconds = time.perf_counter() - self._started
        best = self.checkpoints.best()
        if best is not None:
            load_model(self.model, best)
        return p

    def _train(self, log: MetricsLog, reporter: Reporter) -> None:
        p = self.progress
        if p.step == 0:
            self._warn_of_short_epochs(reporter)
        if self._evaluation_due():  # stopped before or in it
            self._evaluate(log, reporter)
        begin = time.perf_counter()  # of a step, from the loading of its batch
        while not p.finished:
            for batch in on_device(self.train.epoch(p.epoch, start=p.batch), self.device):
                self.model.train()
                self._step(batch)
                self._count(batch.whole or len(batch), begin)
                loss = self.losses.last
                assert loss is not None  # the first step is looked at
                if self._log_due():
                    rate = p.samples_per_second
                    log.write(
                        "train", p.step, p.epoch, loss=loss, learning_rate=p.learning_rate, samples_per_second=rate
                    )
                reporter.step(p, self.steps, loss)
                self._check_stop()
                if self._evaluation_due():
                    self._evaluate(log, reporter)
                    if p.finished:
                        break
                begin = time.perf_counter()

    def _step(self, batch: Batch) -> None:
        loss = self.loss(batch)
        p = self.progress
        self.losses.note(f"step {p.step + 1} (epoch {p.epoch + 1}, batch {p.batch + 1})", loss)
        if self.config.lr_schedule == "linear":
            self._set_learning_rate(self.config.learning_rate * (1 - p.step / self.steps))
        loss.backward()
        self.world.average_gradients(self.optimizer.copied)
        self.backend.after_backward(p.step)
        self.optimizer.step()
        self.backend.after_step(p.step)
        if self.held_out is not None and (held := self.held_out.after(p.step)) is not None:
            self._step_arch(held.to(self.device))

    def _step_arch(self, batch: Batch) -> None:
        parameters = self.optimizer.arch_parameters
        self.loss(batch).backward(inputs=parameters)  # type: ignore[no-untyped-call]
        self.world.average_gradients(parameters)
        self.backend.after_backward(self.progress.step)
        self.optimizer.step_arch()

    def loss(self, batch: Batch) -> Tensor:
        """The task's loss by row, plus what the model and the backend add. Its mean over ranks counts."""
        taught = None
        if self.teacher is not None:
            with torch.inference_mode(), autocast(self.precision, self.device):
                taught = self.teacher(batch)
            taught = taught.clone()
        losses = [self._form_loss(batch, taught) for _ in self.backend.forms()]
        loss = torch.stack(losses).mean(0)
        share = self.world.size / (batch.whole or len(batch))
        aux = self.backend.aux_loss()  # a mean over this process's rows, or the same on all processes
        return loss * share if aux is None else loss * share + aux * (share * len(batch))

    def _form_loss(self, batch: Batch, taught: Tensor | None) -> Tensor:
        """The task's loss, the distance to what the teacher says, and what the model adds."""
        with autocast(self.precision, self.device):
            logits, more = self.model.scored(batch, TaskLosses(self.task, batch))
        loss = self.task.loss(logits, batch)
        if taught is not None:
            loss = torch.lerp(loss, self.task.distance(logits, taught, batch), self.distil)
        return loss if more is None else loss + more

    def _log_due(self) -> bool:
        return self.progress.step % self.log_every == 0 or self.progress.step == 1

    def _count(self, samples: int, begin: float) -> None:
        """Notes a step that began at ``begin``, and looks at the losses where that is due."""
        p = self.progress
        p.samples += samples
        p.step += 1
        p.batch += 1
        epoch_ends = p.batch == len(self.train)
        if self._log_due() or epoch_ends or self._evaluation_due() or self.losses.last is None:
            self.losses.look()  # what a card has not done yet is part of the step's time
        p.step_seconds += time.perf_counter() - begin
        if epoch_ends:
            self.optimizer.catch_up()
            self.backend.after_epoch(p.epoch)
            p.epoch += 1
            p.batch = 0

    def _check_stop(self) -> None:
        """Raises Stopped on every process when one of them was asked."""
        self.stop.signal = self.world.all_reduce_max(self.stop.signal)
        self.stop.check()

    def _warn_of_short_epochs(self, reporter: Reporter) -> None:
        epoch, least = len(self.train), self.steps_between_evaluations
        if self.config.eval_every is None and epoch < least and self.steps > epoch:
            reporter.warn(
                f"an epoch is only {epoch} step{'s' * (epoch > 1)}, and evaluating after each may stop training "
                f"too soon; set training.eval_every to {least} or more, or a smaller training.batch_size"
            )

    def _evaluation_due(self) -> bool:
        p = self.progress
        if p.step == p.evaluated:
            return p.step == 0 and self.keep_start and p.best_score is None
        if p.step >= self.steps:
            return True
        return p.step % self.config.eval_every == 0 if self.config.eval_every else p.batch == 0

    def _evaluate(self, log: MetricsLog, reporter: Reporter) -> None:
        p = self.progress
        self.optimizer.catch_up()
        figures = self.task.metrics(predict(self.model, self.stop.watch(self.valid), self.precision, self.world))
        p.evaluated = p.step
        best = self._judge(figures)
        log.write("eval", p.step, p.epoch, learning_rate=p.learning_rate, **figures)
        reporter.evaluation(p, figures, best)
        self._save()

    def _judge(self, figures: Mapping[str, float | None]) -> bool:
        """Sets what follows a plateau, and whether training ends; True when the figures are the best so far."""
        p, config = self.progress, self.config
        score = self.task.main.score(self.task.main.of(figures))
        best = p.best_score is None or score > p.best_score + config.min_delta
        if best:
            p.best_score, p.best_step, p.best_metrics, p.flat = score, p.step, dict(figures), 0
        else:
            p.flat += 1
        p.finished = p.step >= self.steps
        if config.lr_schedule == "plateau":
            if p.flat == config.plateau and config.lr_drop < 1:
                self._set_learning_rate(p.learning_rate * config.lr_drop)
            p.finished |= p.flat >= config.plateau + config.patience
        return best

    def _set_learning_rate(self, rate: float) -> None:
        self.progress.learning_rate = rate
        self.optimizer.set_learning_rate(rate)

    # -- checkpoints --------------------------------------------------------------------------------------------------

    def _save(self) -> None:
        """Rows that lag behind are saved as they are: to catch them up here would change what training gives."""
        self.losses.look()
        p = self.progress
        p.total_seconds = time.perf_counter() - self._started
        model, tensors = self.model.state_dict(), self.optimizer.state_dict()  # collected from all processes
        tensors |= self._random_state()
        best = None if p.best_score is None else p.best_step
        if self.world.is_rank_zero:
            self.checkpoints.save(p.step, model, tensors, asdict(p), best)
        self.world.barrier()

    def _random_state(self) -> dict[str, Tensor]:
        """The state of the generator that dropout and the like draw from, [W, bytes] over the processes."""
        state = {"random_state": self.world.gather(torch.get_rng_state()[None])}
        if self.device.type == "cuda":
            state["random_state_cuda"] = self.world.gather(torch.cuda.get_rng_state(self.device)[None])
        return state

    def _set_random_state(self, state: dict[str, Tensor]) -> None:
        """Continues the random numbers of this process; one that is new keeps those it has."""
        if self.world.rank < len(state["random_state"]):
            torch.set_rng_state(state["random_state"][self.world.rank].clone())  # it takes no views
            if self.device.type == "cuda":
                torch.cuda.set_rng_state(state["random_state_cuda"][self.world.rank].clone(), self.device)

    def resume(self) -> None:
        """Continues from the newest checkpoint, if there is one."""
        folder = self.checkpoints.last()
        if folder is None:
            return
        load_model(self.model, folder)
        tensors = load_tensors(folder / OPTIMIZER)
        p = self.progress = _read_progress(folder)
        if p.step < 0 or not 0 <= p.batch < max(len(self.train), 1):
            raise UserError(f"{folder / STATE}: batch {p.batch} of {len(self.train)}; restore the run or begin anew")
        try:
            self._set_random_state({n: tensors.pop(n) for n in list(tensors) if n.startswith("random_state")})
            self.optimizer.load_state_dict(tensors, p.carried_steps + p.step)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{folder / OPTIMIZER}: does not fit the run's config ({one_line(error)})") from None
        self.optimizer.set_learning_rate(p.learning_rate)

    def load_optimizer(
        self, folder: Path, fitted: Callable[[str, Tensor], Tensor] = lambda name, values: values
    ) -> None:
        """Goes on with the optimizer of another checkpoint, at this stage's learning rate.

        Args:
            folder: the checkpoint.
            fitted: gives each array, by name, the shape that it has here.
        """
        check(folder, OPTIMIZER, STATE)
        tensors = load_tensors(folder / OPTIMIZER)
        tensors = {k: fitted(k, v) for k, v in tensors.items() if not k.startswith("random_state")}
        before = _read_progress(folder)
        self.progress.carried_steps = before.carried_steps + before.step
        self.optimizer.load_state_dict(tensors, self.progress.carried_steps)
        self.optimizer.set_learning_rate(self.progress.learning_rate)

    def training_bytes(self) -> int:
        """Parameters, buffers and optimizer state, of all processes."""
        tensors: list[Any] = [*self.model.parameters(), *self.model.buffers()]
        return self.world.all_reduce_sum(sum(t.nbytes for t in tensors) + self.optimizer.state_bytes())


def _read_progress(folder: Path) -> TrainingState:
    """Raises UserError on a state with more or fewer facts than there are: defaults would be silent mistakes."""
    file = folder / STATE
    differ = sorted(read_json(file).keys() ^ {f.name for f in fields(TrainingState)})
    if differ:
        raise UserError(f"{file}: {differ[0]} is missing or unknown; go on with the version that wrote it (env.json)")
    return read_json_as(file, TrainingState)
