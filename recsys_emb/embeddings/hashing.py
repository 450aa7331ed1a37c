"""Seeded hash functions on int64 tensors: splitmix64's mixing, then an unbiased reduction to [0, M).

A plain ``id % M`` sends ids of equal stride to few rows; mixing first makes every row equally likely whatever the ids
look like. Torch's int64 products wrap around, so the arithmetic is that of uint64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_emb.data.splitmix import GOLDEN, MULTIPLIERS

_MASK = (1 << 64) - 1
MAX_ROWS = 1 << 31
"""Largest M: products with a 32-bit half stay within int64."""


def _signed(x: int) -> int:
    x &= _MASK
    return x - (1 << 64) if x >> 63 else x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift; torch's own copies the sign."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finalizer, a bijection of 64-bit words. int64 [...] -> int64 [...]."""
    x = (x ^ _shift(x, 30)) * _signed(MULTIPLIERS[0])
    x = (x ^ _shift(x, 27)) * _signed(MULTIPLIERS[1])
    return x ^ _shift(x, 31)


def seeds(count: int, seed: int = 0) -> Tensor:
    """``count`` seeds of independent hash functions, int64 [count]; the same for the same ``seed``."""
    start = mix(torch.tensor([_signed(seed * GOLDEN + 1)]))
    return mix(start + torch.arange(1, count + 1) * _signed(GOLDEN))


def hash_ids(ids: Tensor, rows: Tensor | int, seed: Tensor | int) -> Tensor:
    """Row of each id, uniform over [0, rows).

    The 64-bit hash h becomes floor(h * rows / 2^64) (multiply-shift reduction, Lemire 2019): no division, and no row
    is likelier than another by more than rows / 2^64.

    Args:
        ids: int64 [...], any value up to 2^63 - 1.
        rows: how many rows, 1..2^31; a number or int64 that broadcasts with ``ids``.
        seed: which hash function; a number or int64 that broadcasts with ``ids``.

    Returns:
        int64 [...].
    """
    h = mix(ids ^ seed)
    high, low = _shift(h, 32), h & 0xFFFFFFFF
    return _shift(high * rows + _shift(low * rows, 32), 32)
