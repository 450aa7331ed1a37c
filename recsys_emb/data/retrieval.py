"""A static function from keys to small numbers that keeps no key: binary fuse retrieval with four places a key.

Graf and Lemire, "Binary Fuse Filters: Fast and Smaller Than Xor Filters", 2022. The number of a key is the exclusive or
of four places of an array of 1.075 places a key (more for few keys), one in each of four neighbouring segments. A key
that was never stored gets some number or other.

Building is peeling: a place that belongs to one key alone is that key's to set, whatever the others hold, so the key
goes and may leave further places to one key alone. Keys that go in one round share no such place, so a round is a few
operations of numpy: 33 million keys take minutes, without C++.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from recsys_emb.data.splitmix import GOLDEN, splitmix64

PLACES = 4
WIDEST = 56
"""Bits of a number; with the 7 bits before its first they are in one word of 8 bytes."""
LEAST_SEGMENT, LARGEST_SEGMENT = 4, 1 << 16  # four positions within one are cut out of 64 bits
_ATTEMPTS = 64
_FOLLOWING = np.arange(PLACES, dtype=np.uint64)[:, None]
_SHIFTS = _FOLLOWING * np.uint64(16)


@dataclass(frozen=True)
class Retrieval:
    """Numbers by key.

    Attributes:
        seed: of the places.
        segment: places of a segment, a power of two.
        starts: segments that a key's first place may be in; there are three more.
        width: bits of a number.
        packed: uint8 [:func:`packed_bytes`], the places one after the other, the first bit first.
    """

    seed: int
    segment: int
    starts: int
    width: int
    packed: np.ndarray

    def __post_init__(self) -> None:
        sizes = self.seed >= 0 and self.starts >= 1 and 0 <= self.width <= WIDEST
        power = LEAST_SEGMENT <= self.segment <= LARGEST_SEGMENT and self.segment & (self.segment - 1) == 0
        if not (sizes and power) or len(self.packed) != packed_bytes(self.segment, self.starts, self.width):
            raise ValueError("a retrieval structure of impossible sizes")

    @classmethod
    def build(cls, keys: np.ndarray, numbers: np.ndarray, width: int, seed: int = 0) -> Self:
        """Stores uint64 ``numbers`` [n], each below 2^width, under the uint64 ``keys`` [n], all different.

        Raises:
            ValueError: keys are not all different.
        """
        for attempt in range(_ATTEMPTS):
            # What cannot be peeled at its size almost always can at another seed; few keys may need more room, too.
            segment, starts = shape(len(keys), more=attempt // 4)
            places = _places(keys, seed + attempt, segment, starts)
            order = _peel(places, (starts + PLACES - 1) * segment)
            if order is not None:
                table = _assign(places, numbers, order, (starts + PLACES - 1) * segment)
                return cls(seed + attempt, segment, starts, width, _pack(table, width))
        raise ValueError("two keys are the same")

    def get(self, keys: np.ndarray) -> np.ndarray:
        """uint64 numbers [n] of the uint64 ``keys`` [n]."""
        places = _places(keys, self.seed, self.segment, self.starts)
        return np.bitwise_xor.reduce(_unpack(self.packed, places, self.width), axis=0)


def shape(n: int, more: int = 0) -> tuple[int, int]:
    """Places of a segment, and segments that may be first, for ``n`` keys (the paper's section 3.2).

    Args:
        n: keys.
        more: steps of a twentieth that there are to be more places than usual.
    """
    n = max(n, 2)
    segment = 1 << max(0, math.floor(math.log(n) / math.log(2.91) - 0.5))
    segment = min(max(segment, LEAST_SEGMENT), LARGEST_SEGMENT)
    room = max(1.075, 0.77 + 0.305 * math.log(600_000) / math.log(n)) + 0.05 * more
    return segment, max(1, math.ceil(n * room / segment) - PLACES + 1)


def packed_bytes(segment: int, starts: int, width: int) -> int:
    """Bytes of the places, and 8 more, so that the word that each begins in is whole."""
    return -(-(starts + PLACES - 1) * segment * width // 8) + 8


def _places(keys: np.ndarray, seed: int, segment: int, starts: int) -> np.ndarray:
    """The four places of each key, int64 [4, n]: one in each of four segments side by side."""
    with np.errstate(over="ignore"):
        mixed = splitmix64(keys ^ np.uint64((seed + 1) * GOLDEN % 2**64))
        within = splitmix64(mixed + np.uint64(GOLDEN))
    first = ((mixed >> np.uint64(32)) * np.uint64(starts) >> np.uint64(32)) * np.uint64(segment)
    places = within >> _SHIFTS
    places &= np.uint64(segment - 1)
    places += first
    places += _FOLLOWING * np.uint64(segment)
    return places.view(np.int64)


def _peel(places: np.ndarray, size: int) -> list[tuple[np.ndarray, np.ndarray]] | None:
    """Rounds of keys that go, int64, and the place that each has to itself; None where some never get one."""
    degree = np.zeros(size, np.int32)
    holders = np.zeros(size, np.int64)  # the sum of the keys at a place: the key, once there is one alone
    keys = np.arange(places.shape[1])
    for place in places:
        degree += np.bincount(place, minlength=size).astype(np.int32)
        np.add.at(holders, place, keys)
    rounds, left = [], len(keys)
    own = np.flatnonzero(degree == 1)
    while len(own):
        gone, first = np.unique(holders[own], return_index=True)  # a key may have two places to itself
        rounds.append((gone, own[first]))
        left -= len(gone)
        touched = [place[gone] for place in places]
        for place in touched:
            np.subtract.at(degree, place, 1)
            np.subtract.at(holders, place, gone)
        near = np.concatenate(touched)
        own = np.unique(near[degree[near] == 1])
    return None if left else rounds


def _assign(
    places: np.ndarray, numbers: np.ndarray, rounds: list[tuple[np.ndarray, np.ndarray]], size: int
) -> np.ndarray:
    """The places' contents, uint64 [size]: the last to go is set first."""
    table = np.zeros(size, np.uint64)
    for gone, own in reversed(rounds):
        value = numbers[gone]
        for place in places:
            value ^= table[place[gone]]  # its own place is still 0
        table[own] = value
    return table


def _pack(table: np.ndarray, width: int) -> np.ndarray:
    """The lowest ``width`` bits of each number, one after the other, the first bit first; uint8."""
    out = np.zeros(-(-len(table) * width // 8) + 8, np.uint8)
    for start in range(0, len(table), 1 << 20):  # of whole bytes, since it is a multiple of 8
        part = table[start : start + (1 << 20)]
        bits = np.unpackbits(part.astype("<u8").view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")[:, :width]
        packed = np.packbits(bits.reshape(-1), bitorder="little")
        at = start * width // 8
        out[at : at + len(packed)] = packed
    return out


def _unpack(packed: np.ndarray, place: np.ndarray, width: int) -> np.ndarray:
    """uint64 numbers at each ``place``."""
    first = place * width
    words = np.ndarray(len(packed) - 7, dtype="<u8", buffer=packed, strides=(1,))[first >> 3]
    words >>= (first & 7).view(np.uint64)
    words &= np.uint64((1 << width) - 1)
    return words
