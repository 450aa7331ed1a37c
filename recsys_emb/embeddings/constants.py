"""Numbers that a lookup needs and nobody stores: where tables begin, how many rows they have, seeds of hashes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn


class Constants(nn.Module):
    """A module whose tensors that are neither parameters nor buffers lie where it lies, so a card has them at hand.

    They are made on the CPU from the module's sizes. They are no state: nothing saves, counts or converts them, and
    ``to("meta")`` and ``to_empty`` leave their values as they are. So a lookup of meta tensors moves them, by
    ``.to(ids.device)``, which elsewhere does nothing.
    """

    def _apply(self, fn: Callable[[Tensor], Any], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        device = fn(torch.empty(0)).device
        if device.type != "meta":
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value.to(device))
        return self
