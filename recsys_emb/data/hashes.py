"""Hashes of raw values that never change: the ids of datasets without vocabularies."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recsys_emb.data.splitmix import GOLDEN, splitmix64

HASH_SEED = 0x5EED_0F_1D5
"""Part of the format of hash64 datasets: another seed gives other ids."""

_NULL_HASH = np.int64(0x6E756C6C)


def hash63(values: pa.Array) -> np.ndarray:
    """Hashes int64 [n] in 1 .. 2^63 - 1 of integers (int64) or strings (UTF-8 bytes).

    The same in every process, on every machine and for every version of the libraries. Each 8-byte word, little
    endian and padded with zeros, is mixed in by the finaliser of splitmix64 (Steele, Lea and Flood, 2014).
    """
    missing = values.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(values.type):
        words = values.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64)
        state = _mix(words ^ np.uint64(HASH_SEED))
    else:
        state = _hash_strings(values.cast(pa.large_string()).fill_null(""))
    hashes = np.maximum((state >> np.uint64(1)).astype(np.int64), 1)
    return np.where(missing, _NULL_HASH, hashes)


def _hash_strings(values: pa.Array) -> np.ndarray:
    _, offset_bytes, data = values.buffers()
    offsets = np.frombuffer(offset_bytes, dtype=np.int64)[values.offset : values.offset + len(values) + 1]
    text = b"" if data is None else data.to_pybytes()
    padded = np.frombuffer(text + b"\0" * 8, dtype=np.uint8)
    word_at = np.ndarray(len(padded) - 7, dtype="<u8", buffer=padded, strides=(1,))
    lengths = np.diff(offsets)
    state = _mix(lengths.view(np.uint64) ^ np.uint64(HASH_SEED ^ 0x737472))
    rows, done = np.arange(len(values)), 0
    while len(rows := rows[lengths[rows] > done]):
        words = word_at[offsets[rows] + done]
        used = np.minimum(lengths[rows] - done, 8).astype(np.uint64)
        words &= np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - used * np.uint64(8))
        state[rows] = _mix(state[rows] ^ words)
        done += 8
    return state


def _mix(x: np.ndarray) -> np.ndarray:
    return splitmix64(x + np.uint64(GOLDEN))
