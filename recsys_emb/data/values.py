"""Raw values of categorical fields: one integer or string type, flat lists, and hashes that never change."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from recsys_emb.data.splitmix import GOLDEN, splitmix64
from recsys_emb.errors import UserError

HASH_SEED = 0x5EED_0F_1D5
"""Part of the format of hash64 datasets: another seed gives other ids."""

_NULL_HASH = np.int64(0x6E756C6C)


def canonical(values: pl.Series) -> pl.Series:
    """``values`` as Int64 (integers of at most 63 bits, or whole floats) or String (everything else), nulls kept.

    Raises:
        UserError: floats that are not whole. Whole ones, NaN for missing, are what pandas makes of integers with gaps.
    """
    if values.dtype.is_float():
        values = _whole(values.fill_nan(None))
    if values.dtype.is_integer() and values.dtype != pl.UInt64:
        return values.cast(pl.Int64)
    return values.cast(pl.String)


def as_prepared(values: pl.Series, integers: bool | None) -> pl.Series:
    """Canonical values as the dataset has them, integers or strings; None: that is not known.

    Raises:
        UserError: strings for a dataset of integers. Integers for one of strings become the text that spells them.
    """
    if integers is None or integers == values.dtype.is_integer():
        return values
    if not integers or values.null_count() == len(values):
        return values.cast(pl.Int64 if integers else pl.String)
    raise UserError(f"field {values.name!r}: the values are texts, the dataset was prepared from integers; cast them")


def flatten(lists: pl.Series, max_length: int | None = None) -> tuple[pl.Series, np.ndarray]:
    """The values of a List column, row after row, and the lengths int64 [n]; a null list is an empty one.

    With ``max_length`` only the last entries of each list are kept.
    """
    if max_length is not None:
        lists = lists.list.tail(max_length)
    lengths = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    flat = lists.filter(lengths > 0).explode()
    return canonical(flat), lengths


def distinct_codes(values: pl.Series) -> tuple[pa.Array, np.ndarray]:
    """The distinct values, in order of appearance, null included, and each value's position among them, int32 [n]."""
    encoded = values.to_arrow().dictionary_encode(null_encoding="encode")
    return encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)


def _whole(values: pl.Series) -> pl.Series:
    numbers = values.cast(pl.Int64, strict=False)
    wrong = values.filter((numbers.cast(values.dtype) != values).fill_null(True) & values.is_not_null())
    if len(wrong):
        raise UserError(
            f"field {values.name!r}: {wrong[0]} is no id; a field with a vocabulary holds integers or texts"
        )
    return numbers


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


def check_one_type(vocabulary: str, known: pa.DataType, new: pa.DataType) -> None:
    """Raises UserError when the fields of a vocabulary, or the files of a field, differ in type."""
    if known != new:
        raise UserError(
            f"vocabulary {vocabulary!r} gets both {_word(known)} and {_word(new)}; "
            "give fields that share a vocabulary one type"
        )


def _word(kind: pa.DataType) -> str:
    return "integers" if pa.types.is_integer(kind) else "strings"


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
