"""The rows of a split, as stores, encoders and loaders pass them on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Jagged:
    """Values of a multi-valued or sequence field: row i holds ``values[offsets[i]:offsets[i + 1]]``."""

    values: Tensor  # int32 or int64 [m]
    offsets: Tensor  # int64 [n + 1]


@dataclass(frozen=True)
class Split:
    """The memory-mapped arrays of one split; nothing is read until rows are gathered."""

    name: str
    labels: Tensor  # uint8 [n]
    weights: Tensor | None  # float32 [n]
    dense: Tensor  # float32 [n, Nd]
    ids: Tensor  # int32 or int64 [n, F]
    jagged: dict[str, Jagged]  # multi-valued and sequence fields

    def __len__(self) -> int:
        return len(self.labels)
