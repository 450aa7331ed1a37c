"""The rows of a split, as stores, encoders and loaders pass them on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
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


def concatenated(splits: Sequence[Split]) -> Split:
    """The rows of all splits, which are of one dataset and have no weights."""
    import torch  # takes a second, and who prepares a dataset joins none

    def jagged(name: str) -> Jagged:
        parts = [split.jagged[name] for split in splits]
        starts = list(accumulate((len(part.values) for part in parts), initial=0))
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts)]
        return Jagged(torch.cat([p.values for p in parts]), torch.cat([parts[0].offsets[:1], *offsets]))

    return Split(
        name=splits[0].name,
        labels=torch.cat([split.labels for split in splits]),
        weights=None,
        dense=torch.cat([split.dense for split in splits]),
        ids=torch.cat([split.ids for split in splits]),
        jagged={name: jagged(name) for name in splits[0].jagged},
    )
