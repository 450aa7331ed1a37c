"""The rows that a step updates, and their gradients, from those of the lookup before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class LookedUp:
    """What a lookup of N rows leaves to the step.

    Attributes:
        rows: int64 [U], each row once; or [N], as they were looked up.
        inverse: int64 [N], at which of ``rows`` the gradients of the same row are summed.
        repeated: the latter.
    """

    rows: Tensor
    inverse: Tensor
    repeated: bool = False

    def summed(self, gradient: Tensor) -> Tensor:
        """The gradient of each of ``rows``, of a row that repeats the same each time, from that of the lookup, [N, D].

        Returns:
            [U, D] or [N, D], which may be overwritten.
        """
        total = gradient.new_zeros(len(self.rows), gradient.shape[1]).index_add_(0, self.inverse, gradient)
        return total.index_select(0, self.inverse) if self.repeated else total


def looked_up(rows: Tensor) -> LookedUp:
    """What a lookup of rows int64 [N] leaves; on a card with repetitions."""
    if rows.device.type == "cpu":
        return LookedUp(*torch.unique(rows, return_inverse=True))
    return repeated(rows)


def repeated(rows: Tensor) -> LookedUp:
    """The same with repetitions, so that nobody has to know how many rows are different: a host would wait for that."""
    ordered, order = rows.sort()
    place = F.pad(ordered[1:] != ordered[:-1], (1, 0))[: len(rows)].cumsum(0)
    return LookedUp(rows, torch.empty_like(place).scatter_(0, order, place), repeated=True)
