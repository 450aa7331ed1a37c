"""One lookup of KeyedJaggedTensor features, and the pooling of its bags.

KeyedJaggedTensor handling, pooling, weights and empty bags live here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from recsys_emb.embeddings.base import EmbeddingBackend


@dataclass(frozen=True)
class Feature:
    """A key of a KeyedJaggedTensor and the table of the group that embeds it."""

    key: str
    table: int


@dataclass(frozen=True)
class LookupResult:
    """What one lookup of F features gave: their rows one after another.

    rows: float [N, D]; lengths: int64 [F, B]; ids int64 [N]; weights float [N] or None; splits: rows of each feature.
    """

    rows: Tensor
    lengths: Tensor
    ids: Tensor
    weights: Tensor | None
    splits: list[int]

    def split(self) -> list[LookupResult]:
        """One feature each."""
        weights = [None] * len(self.splits) if self.weights is None else self.weights.split(self.splits)
        return [
            LookupResult(rows, self.lengths[i : i + 1], ids, weight, [n])
            for i, (rows, ids, weight, n) in enumerate(
                zip(self.rows.split(self.splits), self.ids.split(self.splits), weights, self.splits)
            )
        ]

    def pooled(self, means: Sequence[bool]) -> Tensor:
        """Bags summed, or averaged where ``means`` says so; empty bags are zero. float [F, B, D].

        With weights the average is the weighted sum over the number of ids.
        """
        features, batch = self.lengths.shape
        lengths = self.lengths.reshape(-1)
        single = self.weights is None and len(self.rows) == len(lengths) and bool((lengths == 1).all())
        if single:
            return self.rows.view(features, batch, self.rows.shape[1])
        rows = self.rows if self.weights is None else self.rows * self.weights[:, None].to(self.rows.dtype)
        bag = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths, output_size=len(rows))
        out = rows.new_zeros(len(lengths), rows.shape[1]).index_add(0, bag, rows)
        out = out.view(features, batch, rows.shape[1])
        if any(means):
            mean = torch.tensor(means, device=rows.device)[:, None]
            out = out / torch.where(mean, self.lengths.clamp(min=1), 1)[..., None]
        return out


def lookup_features(
    backend: EmbeddingBackend[Any], features: Sequence[Feature], kjt: KeyedJaggedTensor, weighted: bool = False
) -> LookupResult:
    """Embeds the features with one lookup.

    Args:
        backend: the group's backend.
        features: sorted by table.
        kjt: holds at least the features' keys, in any order.
        weighted: take the KeyedJaggedTensor's weights along.

    Raises:
        KeyError: a key is missing.
    """
    keys = kjt.keys()
    missing = [f.key for f in features if f.key not in keys]
    if missing:
        raise KeyError(f"KeyedJaggedTensor without key {missing[0]!r}; it has {', '.join(keys)}")
    if kjt.values().is_floating_point():
        raise TypeError(f"ids must be integers, got {kjt.values().dtype}")
    order = [keys.index(f.key) for f in features]
    per_key = kjt.length_per_key()
    splits = [per_key[i] for i in order]
    ids, lengths = kjt.values(), kjt.lengths().view(len(keys), kjt.stride())
    weights = kjt.weights() if weighted else None
    if order != list(range(len(keys))):
        parts = ids.split(per_key)
        ids = torch.cat([parts[i] for i in order])
        lengths = lengths[order]
        if weights is not None:
            parts = weights.split(per_key)
            weights = torch.cat([parts[i] for i in order])
    counts = [0] * len(backend.spec.tables)
    for feature, n in zip(features, splits):
        counts[feature.table] += n
    return LookupResult(backend(ids.long(), counts), lengths, ids, weights, splits)
