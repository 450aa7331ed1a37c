"""Losses that stay where they were computed until somebody looks, so that no step waits for a card."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from recsys_emb.errors import UserError


class Losses:
    """The losses of the steps since the last look.

    Args:
        mean: of a tensor over the processes that train together.

    Attributes:
        last: the loss of the last step that was looked at; None before the first look.
    """

    def __init__(self, mean: Callable[[Tensor], Tensor]) -> None:
        self._mean = mean
        self._noted: list[tuple[str, Tensor]] = []
        self.last: float | None = None

    def note(self, step: str, loss: Tensor) -> None:
        """Keeps a loss, a tensor of no dimension; ``step`` says of which step in a message."""
        self._noted.append((step, loss.detach()))

    def look(self) -> None:
        """Reads what was noted. Raises UserError where a loss is not finite, on all processes."""
        if not self._noted:
            return
        steps, losses = zip(*self._noted)
        self._noted = []
        values = self._mean(torch.stack(losses)).tolist()
        for step, value in zip(steps, values):
            if not math.isfinite(value):
                raise UserError(
                    f"training diverged: the loss is {value} at {step}; "
                    "lower training.learning_rate or set training.max_grad_norm"
                )
        self.last = values[-1]
