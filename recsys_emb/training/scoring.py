"""What a search maximises: how well a model's present form predicts validation rows."""

from __future__ import annotations

from collections.abc import Iterable

from recsys_emb.data.batches import Batch, BatchLoader
from recsys_emb.models.base import CTRModel
from recsys_emb.training.metrics import Predictions
from recsys_emb.training.predict import predict
from recsys_emb.training.task import Task


class Scorer:
    """The task's main metric on validation rows, the same ones on every call; more is better.

    Args:
        task: of the run.
        model: scored in eval mode, in whatever form its backend has when called.
        valid: the validation split.
        rows: about so many of them, in batches spread evenly over the split and kept in memory; None for all.
        precision: ``fp32``, ``tf32`` or ``bf16``.
    """

    def __init__(self, task: Task, model: CTRModel, valid: BatchLoader, rows: int | None, precision: str) -> None:
        self.task, self.model, self.precision = task, model, precision
        self.batches: Iterable[Batch] = valid if rows is None else sampled_batches(valid, rows)

    def __call__(self) -> float:
        return self.task.main.score(self.task.value(self.predictions()))

    def predictions(self) -> Predictions:
        """The predictions of the rows that are scored."""
        return predict(self.model, self.batches, self.precision)


def sampled_batches(loader: BatchLoader, rows: int) -> list[Batch]:
    """About so many rows of a split, in batches spread evenly over it; all of it where it has no more."""
    wanted = min(-(-rows // loader.batch_size), len(loader))
    chosen = {i * len(loader) // wanted for i in range(wanted)}
    return [batch for i, batch in enumerate(loader) if i in chosen]
