"""splitmix64: random numbers by counter, so that row i is the same whatever was drawn before it."""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15
MULTIPLIERS = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The finaliser's multipliers (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014)."""


def splitmix64(x: np.ndarray) -> np.ndarray:
    """Mixes each element of ``x`` (uint64) in place and returns it: the finaliser."""
    t = x >> np.uint64(30)
    x ^= t
    x *= np.uint64(MULTIPLIERS[0])
    x ^= np.right_shift(x, np.uint64(27), out=t)
    x *= np.uint64(MULTIPLIERS[1])
    x ^= np.right_shift(x, np.uint64(31), out=t)
    return x


def stream_key(seed: int, *tags: int) -> np.uint64:
    """The key of one independent stream: a hash of the seed and of small numbers that name the stream."""
    key = np.array([seed % 2**64], dtype=np.uint64)
    for tag in tags:
        key = splitmix64(key + np.uint64(GOLDEN)) + np.uint64(tag)
    return splitmix64(key + np.uint64(GOLDEN))[0]


def stream(key: np.uint64, counters: np.ndarray) -> np.ndarray:
    """uint64 [n]: the numbers of stream ``key`` at ``counters`` (integers [n])."""
    x = counters.astype(np.uint64)
    x *= np.uint64(GOLDEN)
    x += key
    return splitmix64(x)


def uniform(bits: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) of the upper 53 of 64 random ``bits``."""
    return (bits >> np.uint64(11)) * (1.0 / (1 << 53))
