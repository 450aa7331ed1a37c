"""One lookup of KeyedJaggedTensor features, and the pooling of its bags.

Pooling, weights and empty bags live here and nowhere else. F features, N ids of all of them, B_f bags of feature f,
which are B where all have as many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.counts import split_ids

if TYPE_CHECKING:
    from torchrec import KeyedJaggedTensor


@dataclass(frozen=True)
class Feature:
    """A key of a KeyedJaggedTensor and the table of the group that embeds it."""

    key: str
    table: int


@dataclass(frozen=True)
class LookupResult:
    """What one lookup of F features gave: their rows one after another.

    rows:    float [N, D]
    lengths: int64 [sum of B_f], ids of each bag
    ids:     int [N]
    weights: float [N] or None
    sizes:   F numbers, rows of each feature
    bags:    F numbers, B_f
    """

    rows: Tensor
    lengths: Tensor
    ids: Tensor
    weights: Tensor | None
    sizes: list[int]
    bags: list[int]

    def by_feature(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Each feature's rows [n, D], lengths [B_f] and ids [n]."""
        rows, ids = split_ids(self.rows, self.sizes), split_ids(self.ids, self.sizes)
        return list(zip(rows, split_ids(self.lengths, self.bags), ids))

    def pooled(self, means: Sequence[bool]) -> list[Tensor]:
        """Bags summed, or averaged where ``means`` says so; empty bags are zero. F tensors, float [B, D].

        All features have B bags. With weights the average is the weighted sum over the number of ids.
        """
        values = _pool_all(self.rows, self.lengths, self.weights, self.bags, list(means))
        return [values[i] for i in range(len(means))]


def lookup_features(
    backend: EmbeddingBackend[Any],
    features: Sequence[Feature],
    kjt: KeyedJaggedTensor,
    *,
    weighted: bool = False,
    checked: bool = False,
) -> LookupResult:
    """Embeds the features with one lookup.

    Args:
        backend: the group's backend.
        features: sorted by table.
        kjt: holds at least the features' keys, in any order.
        weighted: take the KeyedJaggedTensor's weights along.
        checked: the ids are known to lie within their tables.

    Raises:
        KeyError: a key is missing.
        TypeError: ids are floats.
        IndexError: an id is outside its table.
    """
    from recsys_emb.embeddings.torchrec_io import select  # TorchRec takes longer to import than torch

    ids, lengths, weights, sizes, bags = select(kjt, [f.key for f in features], weighted)
    of_feature = [sizes[i] for i in range(len(features))]
    counts: list[int] = [0] * len(backend.spec.tables)
    for feature, n in zip(features, of_feature):
        counts[feature.table] = counts[feature.table] + n
    rows = backend.lookup(ids.long(), counts) if checked else backend(ids.long(), counts)
    return LookupResult(
        rows, lengths, ids, weights if weighted else None, of_feature, [bags[i] for i in range(len(features))]
    )


@torch.fx.wrap
def _pool_all(rows: Tensor, lengths: Tensor, weights: Tensor | None, bags: list[int], means: list[bool]) -> Tensor:
    """Pooled bags, float [F, B, D]."""
    shape = [len(bags), bags[0], rows.shape[1]]
    if weights is None and _one_each(rows, lengths):
        return rows.view(shape)
    pooled = pool(rows, lengths, weights).view(shape)
    if any(means):
        mean = torch.tensor(means, device=rows.device)[:, None]
        pooled = pooled / torch.where(mean, lengths.view(shape[:2]).clamp(min=1), 1)[..., None]
    return pooled


def _one_each(rows: Tensor, lengths: Tensor) -> bool:
    """Whether every bag is known to hold one row; of a card's nothing is known, since the host would wait for it."""
    if lengths.is_cuda or (not torch.jit.is_scripting() and torch.compiler.is_compiling()):
        return False
    return rows.shape[0] == lengths.numel() and not lengths.is_meta and bool((lengths == 1).all())


def pool(rows: Tensor, lengths: Tensor, weights: Tensor | None = None) -> Tensor:
    """Rows [n, D] of bags one after another, summed by bag: float [bags, D]; empty bags are zero."""
    if weights is not None:
        rows = rows * weights[:, None].to(rows.dtype)
    bags = lengths.shape[0]
    bag = torch.arange(bags, device=rows.device).repeat_interleave(lengths, output_size=rows.shape[0])
    return rows.new_zeros([bags, rows.shape[1]]).index_add(0, bag, rows)
