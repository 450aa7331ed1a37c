"""A vocabulary without its values: from the hash of a value to its id, and some bits that tell unknown values apart.

What a value takes in three forms, with N values and f fingerprint bits:

- raw: 4 bytes of an integer, 16 of a text of 8 letters;
- a minimal perfect hash and fingerprints: 2.3 + f bits; but rows, or codes, must lie in its order, which forms whose
  ids fall with their counts (pq's levels, mixed_dim's blocks) cannot, and a prepared dataset's ids are others then;
- a retrieval structure of ids (retrieval.py): 1.08 (log2 N + f) bits, and every id stays what it is.

So retrieval it is, and three things make it less. A value that is served with the row of id 0 has no entry. Values with
the same row share a number: where pq gives rare ids one code of 6 bits, they have 64 numbers and not N. And such
numbers, which many values have, are short; the few values with rows of their own have long ones in a second structure,
which needs no fingerprints. Of synthetic-5m with pq at 1/100 (1,033,254 ids, half of them with the row of id 0) that
makes 15.3 bits an entry, 0.98 MB in all, where raw values take 4.07 MB, all ids 3.6 MB, and a minimal perfect hash
would take 0.66 MB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import polars as pl
import pyarrow as pa
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recsys_emb.data.hashes import hash63
from recsys_emb.data.retrieval import Retrieval, packed_bytes, shape
from recsys_emb.data.schema import OOV_ID
from recsys_emb.data.splitmix import splitmix64, stream, stream_key
from recsys_emb.data.vocabulary import ValueIndex, read_values
from recsys_emb.errors import UserError
from recsys_emb.files import one_line

DEFAULT_BITS, MOST_BITS = 8, 24
_SALT = np.uint64(0x66696E6765727072)
_MOST_SHORT = 16
"""Bits of a short number at most."""


class _Numbering(NamedTuple):
    """How the rows of entries are numbered.

    short: int64 [k], the ids behind the short numbers 1 to k; 0 says that the long number follows
    bits:  of a short number; 0 where all numbers are long and stand beside the fingerprint
    long:  bits of a long number, which is the id
    bytes: of all
    """

    short: np.ndarray
    bits: int
    long: int
    bytes: int


@dataclass(frozen=True)
class FingerprintIndex:
    """From raw values to ids, as :class:`~recsys_emb.data.vocabulary.ValueIndex`, for what is served.

    A value that has an entry gets an id of the very row that it is served with; one that has none gets id 0, but for
    one in 2^bits of those that the vocabulary does not have, which gets some other id. A missing value is never taken
    for another, nor is a value of the vocabulary.

    Attributes:
        size: ids that there are, id 0 included.
        integers: whether values are integers, texts otherwise.
        bits: of a fingerprint.
        entries: short or long numbers, each above its fingerprint.
        long: ids by value where ``entries`` has 0; None where it has all.
        short: int32 [k], the ids behind short numbers.
        veto: uint64, rising: hashes without an entry that would be taken for one that has: of a missing value, and of
            values of the vocabulary.
        dropped: how many values of the vocabulary have no entry.
    """

    size: int
    integers: bool
    bits: int
    entries: Retrieval
    long: Retrieval | None
    short: np.ndarray
    veto: np.ndarray
    dropped: int

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= MOST_BITS and self.entries.width >= self.bits):
            raise ValueError("fingerprints of impossible sizes")
        if len(self.short) and not 0 <= self.short.min() <= self.short.max() < self.size:
            raise ValueError("numbers that stand for no id")

    @classmethod
    def build(cls, values: pl.Series, served_as: np.ndarray, bits: int = DEFAULT_BITS) -> Self:
        """The index of a vocabulary.

        Args:
            values: the raw value of id i + 1 at position i, integers or texts.
            served_as: int64 [ids], the least id that has the same row as each (``same_rows``).
            bits: of a fingerprint.

        Raises:
            ValueError: two values have the same hash of 63 bits.
        """
        integers = values.dtype.is_integer()
        hashes = hash63((values.cast(pl.Int64) if integers else values).to_arrow()).view(np.uint64)
        rows = served_as[1:]
        kept = rows != OOV_ID
        keys, rows, dropped = hashes[kept], rows[kept], hashes[~kept]
        numbering = _numbering(rows, bits)
        fingerprints, short = _fingerprints(keys, bits), numbering.short
        long = None
        if numbering.bits:
            by_id = np.zeros(len(served_as), np.uint64)
            by_id[short] = np.arange(1, len(short) + 1, dtype=np.uint64)
            numbers = by_id[rows]
            rest = numbers == 0
            long = Retrieval.build(keys[rest], rows[rest].astype(np.uint64), numbering.long)
        else:
            numbers = rows.astype(np.uint64)
        width = bits + (numbering.bits or numbering.long)
        entries = Retrieval.build(keys, numbers << np.uint64(bits) | fingerprints, width)
        none = np.empty(0, np.uint64)
        made = cls(len(served_as), integers, bits, entries, long, short.astype(np.int32), none, len(dropped))
        missing = hash63(pa.nulls(1, pa.int64())).view(np.uint64)
        others = np.union1d(dropped, np.setdiff1d(missing, keys))
        return replace(made, veto=others[made.of_hashes(others) != OOV_ID])

    @property
    def tells_unknown(self) -> bool:
        """Whether id 0 means that the vocabulary does not have the value."""
        return self.dropped == 0

    def taken_for_known(self, tries: int = 1 << 16) -> float:
        """The measured share of unknown values that get an id."""
        hashes = stream(stream_key(0), np.arange(tries))
        return float((self.of_hashes(hashes >> np.uint64(1)) != OOV_ID).mean())

    def ids(self, values: pa.Array) -> np.ndarray:
        """int32 ids [n] of canonical values, integers or texts; 0 for those without an entry."""
        hashed = ValueIndex(None, self.size, self.integers).ids(values)
        return self.of_hashes(hashed.view(np.uint64))

    def id_of(self, value: int) -> int:
        """What ``ids`` gives an integer of 64 bits."""
        return int(self.ids(pa.array([value], pa.int64()))[0])

    def of_hashes(self, hashes: np.ndarray) -> np.ndarray:
        """int32 ids [n] of uint64 hashes."""
        found = self.entries.get(hashes)
        known = (found & np.uint64((1 << self.bits) - 1)) == _fingerprints(hashes, self.bits)
        known[known] = ~_among(self.veto, hashes[known])
        ids, at = np.zeros(len(hashes), np.int64), np.flatnonzero(known)
        numbers = (found[at] >> np.uint64(self.bits)).astype(np.int64)
        if self.long is not None:
            rest = numbers == 0
            listed = np.concatenate([[OOV_ID], self.short, [OOV_ID]])  # a number beyond the list is of no value
            numbers = listed[np.minimum(numbers, len(listed) - 1)]
            numbers[rest] = self.long.get(hashes[at[rest]]).astype(np.int64)
        ids[at] = np.where(numbers < self.size, numbers, OOV_ID)
        return ids.astype(np.int32)

    def save(self, path: Path) -> int:
        """Writes the index; returns the bytes of the file."""
        parts = [self.entries, *([] if self.long is None else [self.long])]
        sizes = [self.size, self.integers, self.bits, self.dropped]
        sizes += [n for part in parts for n in (part.seed, part.segment, part.starts, part.width)]
        arrays = {"sizes": np.array(sizes, np.int64), "short": self.short, "veto": self.veto}
        arrays |= {name: part.packed for name, part in zip(("entries", "long"), parts)}
        save_file({name: array for name, array in arrays.items() if len(array)}, path)
        return path.stat().st_size

    @classmethod
    def load(cls, path: Path, size: int) -> Self:
        """Reads what ``save`` wrote. Raises UserError when it is damaged or not of ``size`` ids."""
        try:
            arrays: dict[str, np.ndarray] = load_file(path)
            sizes = arrays.pop("sizes")
            read = {name: arrays.pop(name, np.empty(0, kind)) for name, kind in _ARRAYS.items()}
            wrong = [name for name, kind in _ARRAYS.items() if read[name].dtype != kind or read[name].ndim != 1]
            if arrays or wrong or sizes.dtype != np.int64 or sizes.shape not in ((8,), (12,)):
                raise ValueError("arrays that do not belong there")
            own, entries, long = (part.tolist() for part in np.split(sizes, (4, 8)))
            made = cls(
                size=own[0],
                integers=bool(own[1]),
                bits=own[2],
                entries=_retrieval(entries, read["entries"]),
                long=_retrieval(long, read["long"]) if long else None,
                short=read["short"],
                veto=read["veto"],
                dropped=own[3],
            )
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, MemoryError) as error:
            raise UserError(f"{path}: damaged vocabulary ({one_line(error)}); compact the run again") from None
        if made.size != size:
            raise UserError(f"{path}: fingerprints of {made.size} ids, the schema says {size}; compact the run again")
        return made


_ARRAYS = {"entries": np.uint8, "long": np.uint8, "short": np.int32, "veto": np.uint64}
"""Of a file, beside the sizes; those that are empty are left out."""


def _retrieval(sizes: list[int], packed: np.ndarray) -> Retrieval:
    seed, segment, starts, width = sizes
    return Retrieval(seed, segment, starts, width, packed)


def fingerprint_index(vocabulary: Path, served_as: np.ndarray, bits: int) -> FingerprintIndex:
    """The index of a dataset's vocabulary file. Raises UserError when that is damaged, or two values have one hash."""
    values = read_values(vocabulary, len(served_as))
    try:
        return FingerprintIndex.build(values, served_as, bits)
    except ValueError:
        raise UserError(f"{vocabulary}: two values have the same hash; only --vocabulary exact holds both") from None


def most_bytes(size: int, bits: int = DEFAULT_BITS) -> int:
    """Bytes of an index of ``size`` ids, all with rows of their own; the file's header is in it."""
    return _HEADER + _bytes(size - 1, bits + (size - 1).bit_length())


def planned_bytes(served_as: np.ndarray, bits: int = DEFAULT_BITS) -> int:
    """Bytes of an index as ``FingerprintIndex.build`` makes it, hardly ever less.

    Args:
        served_as: int64 [ids], the least id that has the same row as each.
        bits: of a fingerprint.
    """
    rows = served_as[1:]
    kept = rows[rows != OOV_ID]
    vetoes = (len(rows) - len(kept) + 1) / 2**bits if len(kept) else 0  # what is taken for id 0 is not mistaken
    return _HEADER + _numbering(kept, bits).bytes + 8 * math.ceil(vetoes + 5 * math.sqrt(vetoes))


_HEADER = 512
"""Bytes of names and sizes in a file, at most."""


def _numbering(rows: np.ndarray, bits: int) -> _Numbering:
    """What takes the least bytes for entries with these ids' rows, int64 [n]."""
    ids, counts = np.unique(rows, return_counts=True)
    largest = int(ids.max(initial=0)).bit_length()
    best = _Numbering(np.empty(0, np.int64), 0, largest, _bytes(len(rows), bits + largest))
    by_count = np.argsort(-counts, kind="stable")
    ids, counts = ids[by_count], counts[by_count]
    beyond = np.maximum.accumulate(ids[::-1])[::-1]  # the largest id from there on
    for short in range(1, _MOST_SHORT + 1):
        k = min((1 << short) - 1, len(ids))
        rest = len(rows) - int(counts[:k].sum())
        long = int(beyond[k]).bit_length() if rest else 0
        total = _bytes(len(rows), bits + short) + _bytes(rest, long) + 4 * k
        if total < best.bytes:
            best = _Numbering(ids[:k], short, long, total)
    return best


def _bytes(n: int, width: int) -> int:
    return packed_bytes(*shape(n), width)


def _fingerprints(hashes: np.ndarray, bits: int) -> np.ndarray:
    return splitmix64(hashes ^ _SALT) & np.uint64((1 << bits) - 1)


def _among(rising: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """bool [n]: which of ``wanted`` are in ``rising``."""
    if not len(rising):
        return np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(rising, wanted), len(rising) - 1)
    return rising[at] == wanted
