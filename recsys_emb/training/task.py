"""What a run is trained for: which labels it takes, its loss, its metrics and the one that decides."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_emb.config import RunConfig
from recsys_emb.data.batches import Batch
from recsys_emb.data.split import Split
from recsys_emb.errors import UserError
from recsys_emb.training import metrics
from recsys_emb.training.main_metric import MAIN_METRICS, MainMetric
from recsys_emb.training.metrics import Predictions


class Task(ABC):
    """One kind of prediction. A subclass says all that trainer, search and reports must know of it; it has no state."""

    name: ClassVar[str]
    main: ClassVar[MainMetric]
    keys: ClassVar[tuple[str, ...]]
    """Names of what ``metrics`` gives, the main one first."""

    @abstractmethod
    def check(self, split: Split) -> None:
        """Raises UserError when the split has labels that the task cannot use."""

    @abstractmethod
    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The loss summed over the rows of a batch, in the data's weights.

        Args:
            logits: [B], what the model gives for the batch, in the type that it computes in.
            batch: B rows; B may be 0.

        Returns:
            float32, no dimensions.
        """

    @abstractmethod
    def distance(self, logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """How far a model's predictions are from another's, summed over the rows as ``loss`` is.

        Args:
            logits, teacher: [B], of the model that learns and of the one that it learns from.
            batch: B rows.
        """

    @abstractmethod
    def metrics(self, predictions: Predictions) -> dict[str, float | None]:
        """All metrics of a split, under ``keys``. Raises UserError when they are not defined on it."""

    @abstractmethod
    def value(self, predictions: Predictions) -> float:
        """The main metric alone."""

    @abstractmethod
    def change(self, before: Predictions, after: Predictions) -> tuple[float, float]:
        """How the main metric differs between two models on the same rows, and the standard error of the difference."""


@dataclass(frozen=True)
class TaskLosses:
    """A task's losses of one batch, as a model takes them."""

    task: Task
    batch: Batch

    @property
    def rows(self) -> int:
        return len(self.batch)

    def loss(self, logits: Tensor) -> Tensor:
        return self.task.loss(logits, self.batch)

    def distance(self, logits: Tensor, teacher: Tensor) -> Tensor:
        return self.task.distance(logits, teacher, self.batch)


class ClickThrough(Task):
    """Whether somebody clicks: labels 0 and 1, logits are log-odds, binary cross-entropy."""

    name = "ctr"
    main = MAIN_METRICS["ctr"]
    keys = ("auc", "logloss", "ne", "calibration", "auc_stderr", "gauc", "gauc_users", "gauc_rows", "users", "rows")

    def check(self, split: Split) -> None:
        if len(split) and (most := int(split.labels.max())) > 1:
            raise UserError(
                f"{split.name} split: a label is {most}; task {self.name} takes 0 and 1; prepare the dataset again"
            )

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(logits.float(), batch.labels, batch.weights, reduction="sum")

    def distance(self, logits: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        soft = torch.sigmoid(teacher.float())
        return F.binary_cross_entropy_with_logits(logits.float(), soft, batch.weights, reduction="sum")

    def metrics(self, predictions: Predictions) -> dict[str, float | None]:
        return metrics.evaluate(predictions)

    def value(self, predictions: Predictions) -> float:
        return metrics.auc(predictions.logits, predictions.labels, predictions.weights)

    def change(self, before: Predictions, after: Predictions) -> tuple[float, float]:
        return metrics.auc_change(before, after)


TASKS: Final[Mapping[str, Task]] = {task.name: task for task in (ClickThrough(),)}
"""By the config's ``task``."""


def task_of(config: RunConfig) -> Task:
    """The task of a run."""
    return TASKS[config.task]
