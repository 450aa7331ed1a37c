"""HotSketch: who is hot in a stream of scored keys, in a few slots."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from recsys_emb.embeddings.hashing import hash_ids

SLOTS = 8
EMPTY = -1


class HotSketch(nn.Module):
    """HotSketch (Zhang et al., "CAFE: Towards Compact, Adaptive, and Fast Embedding for Large-scale Recommendation
    Models", SIGMOD 2024, section 3.2).

    Buckets of SLOTS slots, each a key and its score. A key has one bucket, by a hash. Its score is added to its slot;
    without one it takes the bucket's lowest slot, whose score it adds to its own (SpaceSaving, Metwally et al. 2005).
    So scores are hardly ever too low, and the hottest keys stay. The paper has 4 slots to a bucket.

    Args:
        slots: how many in all, at least; SLOTS to a bucket.
        device: where they are.
    """

    keys: Tensor
    scores: Tensor

    def __init__(self, slots: int, device: torch.device | str | None) -> None:
        super().__init__()
        buckets = max(1, -(-slots // SLOTS))
        self.register_buffer("keys", torch.empty(buckets, SLOTS, dtype=torch.int64, device=device))
        self.register_buffer("scores", torch.empty(buckets, SLOTS, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Empties all slots."""
        self.keys.fill_(EMPTY)
        self.scores.zero_()

    def add(self, keys: Tensor, scores: Tensor) -> None:
        """Counts distinct keys int64 [m], none negative, with scores float [m].

        Of keys that are new to a bucket those with the SLOTS highest scores get in, the highest first.
        """
        bucket = hash_ids(keys, len(self.keys), 0)
        match = self.keys[bucket] == keys[:, None]
        known = match.any(1)
        flat_keys, flat_scores = self.keys.view(-1), self.scores.view(-1)
        slot = bucket * SLOTS + match.int().argmax(1)
        flat_scores.index_add_(0, slot, scores.where(known, 0))
        new = (~known).nonzero().view(-1)
        keys, scores, bucket = keys[new], scores[new], bucket[new]
        order = scores.argsort(descending=True, stable=True)
        order = order[bucket[order].argsort(stable=True)]
        keys, scores, bucket = keys[order], scores[order], bucket[order]
        place = torch.arange(len(keys), device=keys.device) - torch.searchsorted(bucket, bucket)  # within its bucket
        turn, by_turn = place.clamp_(max=SLOTS).to(torch.uint8).sort(stable=True)
        ends = torch.searchsorted(turn, torch.arange(1, SLOTS + 1, dtype=torch.uint8, device=turn.device))
        for first, end in pairwise([0, *ends.tolist()]):  # a card is waited for once
            mine = by_turn[first:end]
            slot = bucket[mine] * SLOTS + self.scores[bucket[mine]].argmin(1)
            flat_keys[slot] = keys[mine]
            flat_scores[slot] += scores[mine]

    def hottest(self, number: int, favoured: Tensor, factor: float) -> Tensor:
        """The ``number`` keys with the highest scores, the highest first, int64 [at most number].

        Scores of ``favoured`` keys, int64, rising, count ``factor`` times; of equal ones the lower key comes first.
        """
        used = (self.keys != EMPTY).view(-1)
        keys, order = self.keys.view(-1)[used].sort()
        scores = self.scores.view(-1)[used][order]
        scores = torch.where(contained(keys, favoured), scores * factor, scores)
        return keys[scores.argsort(descending=True, stable=True)[:number]]


def contained(keys: Tensor, among: Tensor) -> Tensor:
    """Which keys int64 [n] are among others, int64, rising: bool [n]."""
    if not len(among):
        return torch.zeros_like(keys, dtype=torch.bool)
    at = torch.searchsorted(among, keys).clamp_(max=len(among) - 1)
    return among[at] == keys
