"""Blocks of rows of a trained backend, and which of them are near-duplicates.

N rows in B blocks of b rows, D columns; no block spans two tables, and the last of a table may hold fewer rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, Stats
from recsys_emb.embeddings.composed import starts_of
from recsys_emb.embeddings.hashing import mix
from recsys_emb.embeddings.posttraining._worth import UNSEEN_WEIGHT
from recsys_emb.embeddings.posttraining.base import all_rows

HALVINGS = 40


def blocks_of(spec: GroupSpec, block: int) -> list[int]:
    """How many blocks each table has."""
    return [-(-t.num_embeddings // block) for t in spec.tables]


class LSHBlocks:
    """The rows of a trained backend as blocks; rows are read in chunks, again for each figure.

    Args:
        trained: any backend whose ids are listed.
        block: b.
        stats: id counts; a row weighs as much as its id's count, ids without counts weigh alike.
    """

    def __init__(self, trained: EmbeddingBackend[Any], block: int, stats: Stats | None) -> None:
        spec = trained.spec
        self.trained, self.block, self.dim = trained, block, spec.embedding_dim
        sizes, blocks = [t.num_embeddings for t in spec.tables], blocks_of(spec, block)
        self.starts, self.first_block = starts_of(sizes).tolist(), starts_of(blocks).tolist()
        self.count = sum(blocks)
        known = [(stats or {}).get(t.name) for t in spec.tables]
        self.weights = torch.cat(
            [
                torch.ones(n, dtype=torch.float64)
                if c is None
                else torch.from_numpy(c).double().clamp(min=UNSEEN_WEIGHT)
                for n, c in zip(sizes, known)
            ]
        )

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Some rows float64 [n, D], the block of each, its place there, and its weight, all on the CPU."""
        for table, place, rows in all_rows(self.trained):
            ids = torch.arange(place.start, place.stop) - self.starts[table]
            yield (
                rows.double().cpu(),
                ids // self.block + self.first_block[table],
                ids % self.block,
                self.weights[place],
            )

    def merged(self, stored: int, shared: float, hashes: int, seed: int) -> Tensor:
        """Which of at most ``stored`` groups each block belongs to, int64 [B], all of them used.

        At most the share ``shared`` of the groups are found by hashes; the blocks that these fit worst stand alone.
        """
        if stored >= self.count:
            return torch.arange(self.count)
        groups = self.near(max(1, int(shared * stored)), hashes, seed)
        found = int(groups.max()) + 1
        worst = self.costs(groups, self.means(groups)).topk(stored - found).indices
        groups[worst] = found + torch.arange(len(worst))
        return torch.unique(groups, return_inverse=True)[1]

    def near(self, groups: int, hashes: int, seed: int) -> Tensor:
        """At most so many groups of blocks that are equal in all hashes, int64 [B].

        A hash is a random projection of the block, rounded to multiples of a width (Datar et al., "Locality-sensitive
        hashing scheme based on p-stable distributions", 2004); the width is the least, found by halving.
        """
        projected = self._projected(hashes, seed)
        least, width = 0.0, 4 * float(projected.abs().max()) or 1.0  # all round to 0
        labels = _labels(projected, width)
        for _ in range(HALVINGS):
            middle = (least + width) / 2
            found = _labels(projected, middle)
            if int(found.max()) < groups:
                width, labels = middle, found
            else:
                least = middle
        return labels

    def _projected(self, hashes: int, seed: int) -> Tensor:
        """float64 [B, hashes]."""
        generator = torch.Generator().manual_seed(seed)
        directions = torch.randn(self.block, self.dim, hashes, dtype=torch.float64, generator=generator)
        out = torch.zeros(self.count, hashes, dtype=torch.float64)
        for rows, block, place, _ in self._chunks():
            for i, direction in enumerate(directions):
                here = place == i
                out.index_add_(0, block[here], rows[here] @ direction)
        return out

    def means(self, groups: Tensor) -> Tensor:
        """Each group's block, the weighted mean of its members', float64 [groups * b, D]."""
        slots = (int(groups.max()) + 1) * self.block
        sums, totals = torch.zeros(slots, self.dim, dtype=torch.float64), torch.zeros(slots, dtype=torch.float64)
        for rows, block, place, weight in self._chunks():
            slot = groups[block] * self.block + place
            sums.index_add_(0, slot, rows * weight[:, None])
            totals.index_add_(0, slot, weight)
        return sums / totals.clamp(min=UNSEEN_WEIGHT)[:, None]

    def costs(self, groups: Tensor, means: Tensor) -> Tensor:
        """The weighted squared error of each block in its group's place, float64 [B]."""
        out = torch.zeros(self.count, dtype=torch.float64)
        for rows, block, place, weight in self._chunks():
            errors = (rows - means[groups[block] * self.block + place]).square().sum(1)
            out.index_add_(0, block, errors * weight)
        return out


def _labels(projected: Tensor, width: float) -> Tensor:
    """Numbers 0, 1, ... of the different rows of ``projected / width``, rounded."""
    keys = torch.zeros(len(projected), dtype=torch.int64)
    for column in (projected / width).round().long().unbind(1):
        keys = mix(keys ^ column) + 1
    return torch.unique(keys, return_inverse=True)[1]
