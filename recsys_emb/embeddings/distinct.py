"""Work that is done once for each different id of a batch, where a vector costs more than its gather."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_emb.embeddings.constants import Constants
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.hashing import mix, seeds


class Keys(Constants):
    """A 64-bit key of each id: a bijection of each table's ids, another for every table.

    Args:
        tables: K.
        seed: of the bijections.
    """

    def __init__(self, tables: int, seed: int) -> None:
        super().__init__()
        self.seeds = seeds(tables, seed)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return mix(ids ^ per_id(self.seeds, counts, ids))


def distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    """A place of each different key, and of every key which of these it is.

    Args:
        keys: int64 [n].

    Returns:
        places int64 [m] and numbers int64 [n], so that ``keys[places][numbers]`` is ``keys``. Where shapes must not
        depend on values (``torch.export``, the meta device) every key counts as different.
    """
    pair = _distinct(keys)
    return pair[0], pair[1]  # a proxy cannot be iterated


@torch.fx.wrap
def _distinct(keys: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.arange(keys.shape[0], device=keys.device)
    if not torch.jit.is_scripting() and torch.compiler.is_compiling():
        return places, places
    if keys.is_meta:
        return places, places
    found, numbers = torch.unique(keys, return_inverse=True)
    return torch.empty_like(found).scatter_(0, numbers, places), numbers
