"""Training rows that only architecture parameters learn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from recsys_emb.data.batches import Batch, BatchLoader


@dataclass
class HeldOut:
    """The batches of architecture steps, one after ``every`` steps of the weights.

    Args:
        loader: gives only rows that the weights' loader does not.
        every: steps of the weights between two of the architecture's.
    """

    loader: BatchLoader
    every: int
    _batches: Iterator[Batch] | None = None

    def after(self, step: int) -> Batch | None:
        """The batch of the architecture step that follows step ``step``, from 0, of the weights; None where none does.

        Steps come in order; a training that is continued begins with any.
        """
        number, rest = divmod(step + 1, self.every)
        if rest:
            return None
        epoch, batch = divmod(number - 1, len(self.loader))
        if self._batches is None or batch == 0:
            self._batches = self.loader.epoch(epoch, batch)
        return next(self._batches)
