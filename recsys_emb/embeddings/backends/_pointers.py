"""Row numbers of ids: learned pointers, which are stored packed, beside hashed ones, which are not stored.

N ids, c chunks of columns, each with P rows that ids point to and H rows that they are hashed to.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_emb.embeddings.composed import starts_of
from recsys_emb.embeddings.constants import Constants
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.hashing import hash_ids, mix, seeds
from recsys_emb.embeddings.posttraining._packing import pack, packed_bytes, unpack

MOST_POINTED = 1 << 16
"""Rows that a chunk may point to."""
AT_ONCE = 1 << 20
"""Ids that are hashed at a time, a multiple of 8: their codes fill whole bytes."""


def pointer_bits(pointed: int) -> tuple[int, int]:
    """Bits of a pointer to one of so many rows, as it is stored: the lowest 8, and those above them."""
    bits = max(1, (pointed - 1).bit_length())
    return min(bits, 8), max(bits - 8, 0)


def pointer_bytes(ids: int, pointed: int) -> int:
    """Bytes of one chunk's pointers."""
    return sum(packed_bytes(ids, bits) for bits in pointer_bits(pointed))


class PointedRows(Constants):
    """ids -> row numbers: of every chunk the row that an id points to and the one that it is hashed to, int64 [n, 2 c].

    A table's rows lie chunk by chunk, each chunk's P pointed ones before its H hashed ones.

    Args:
        sizes: ids of each table.
        rows: P and H of each.
        chunks: c.
        seed: of the hash functions; pointers begin as hashes, too.
        device: where pointers are stored.

    Attributes:
        stream: uint8, all pointers, packed.
        rounds: uint8 [T], how often hash functions were drawn anew.
    """

    stream: Tensor
    rounds: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        rows: Sequence[tuple[int, int]],
        chunks: int,
        seed: int,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.sizes, self.rows, self.chunks = list(sizes), list(rows), chunks
        places, byte = [], 0
        for ids, (pointed, _) in zip(sizes, rows):
            for _ in range(chunks):
                for bits in pointer_bits(pointed):
                    places.append((bits, byte))
                    byte += packed_bytes(ids, bits)
        self.places = torch.tensor(places).view(len(self.sizes), chunks, 2, 2)
        """[T, c, lowest bits or those above, bits and first byte]."""
        self.seeds = seeds(2 * len(self.sizes) * chunks, seed).view(len(self.sizes), chunks, 2)
        per_chunk = torch.tensor(rows).sum(1)
        self.starts = starts_of((chunks * per_chunk).tolist())[:, None] + torch.arange(chunks) * per_chunk[:, None]
        """[T, c], the first row of each chunk."""
        self.limits = torch.tensor(rows)
        self.numbers = torch.arange(len(self.sizes))
        self.register_buffer("stream", torch.empty(byte, dtype=torch.uint8, device=device))
        self.register_buffer("rounds", torch.empty(len(self.sizes), dtype=torch.uint8, device=device))
        if not self.stream.is_meta:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Pointers begin as hashes."""
        self.rounds.zero_()
        for table, (ids, (pointed, _)) in enumerate(zip(self.sizes, self.rows)):
            for chunk, seed in enumerate(self.seeds[table, :, 0].tolist()):
                for first in range(0, ids, AT_ONCE):
                    some = torch.arange(first, min(first + AT_ONCE, ids), device=self.stream.device)
                    self.point(table, chunk, hash_ids(some, pointed, seed), first)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        table = per_id(self.numbers, counts, ids)
        starts = self.starts.to(ids.device).index_select(0, table)
        return torch.cat([starts + self.pointed(table, ids), starts + self.hashed(table, ids, self.rounds)], dim=1)

    def pointed(self, table: Tensor, ids: Tensor) -> Tensor:
        """The row of its chunk that an id points to, int64 [n, c]; each id's table and the ids are int64 [n]."""
        at = self.places.to(ids.device).index_select(0, table)
        parts = _unpacked(self.stream, at.select(3, 1), ids[:, None, None], at.select(3, 0))
        return parts.select(2, 0) + (parts.select(2, 1) << 8)

    def hashed(self, table: Tensor, ids: Tensor, rounds: Tensor) -> Tensor:
        """The row of its chunk that an id is hashed to, after each table's ``rounds``; int64 [n, c]."""
        limits = self.limits.to(ids.device).index_select(0, table)
        seed = self.seeds.to(ids.device).index_select(0, table).select(2, 1)
        drawn = mix(rounds.index_select(0, table).long())  # 0 of the first
        return limits[:, :1] + hash_ids(ids[:, None], limits[:, 1:], seed ^ drawn[:, None])

    def point(self, table: int, chunk: int, rows: Tensor, first: int = 0) -> None:
        """Makes ids of a table from ``first`` on, a multiple of 8, point to their rows of a chunk, int64 below P."""
        for shift, (bits, byte) in zip((0, 8), self.places[table, chunk].tolist()):
            if bits:
                packed = pack((rows >> shift & 255).to(torch.uint8), bits)
                begin = byte + packed_bytes(first, bits)
                self.stream[begin : begin + len(packed)] = packed


@torch.fx.wrap
def _unpacked(stream: Tensor, starts: Tensor, ids: Tensor, bits: Tensor) -> Tensor:
    return unpack(stream, starts, ids.expand_as(starts), bits)
