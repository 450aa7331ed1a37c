"""Vocabularies that go on with new rows: known values keep their ids, new ones get the next numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_emb.data.like import Reference
from recsys_emb.data.schema import OOV_ID
from recsys_emb.data.vocabulary import (
    ValueIndex,
    ValueSpool,
    encode_all,
    ranked_values,
    read_integers,
    read_values,
    write_vocabularies,
)
from recsys_emb.errors import UserError

MOST_IDS = 2**31 - 1
"""Ids of a vocabulary are stored as int32."""


class GrownIds:
    """Ids of every block's values in the vocabularies of a reference and what the blocks add to them (``BlockIds``).

    Args:
        reference: whose vocabularies go on; ids are no hashes.
        spools: the values of all blocks by vocabulary.
        scratch: a folder for what lies on disk meanwhile.
        min_count: least count in the new rows of a new value that gets an id.
        decay: factor on the counts of before.

    Raises:
        UserError: a vocabulary is damaged or would have too many ids.
    """

    hashed = False

    def __init__(
        self, reference: Reference, spools: dict[str, ValueSpool], scratch: Path, min_count: int, decay: float
    ) -> None:
        def grow(name: str) -> GrownVocabulary:
            file, counts = reference.vocabulary_file(name), np.load(reference.path / "counts" / f"{name}.npy")
            assert file is not None  # ids are no hashes
            return GrownVocabulary(file, counts, spools[name], scratch, min_count, decay)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._vocabularies = dict(zip(spools, pool.map(grow, spools)))
        self.sizes = {name: len(vocabulary.counts) for name, vocabulary in self._vocabularies.items()}
        self.hashed_integers: dict[str, bool] = {}

    def by_block(self) -> dict[str, Iterator[np.ndarray]]:
        """Per vocabulary the ids of the values of each block, in the order of the spool."""
        return {name: vocabulary.block_ids() for name, vocabulary in self._vocabularies.items()}

    def write(self, folder: Path) -> int:
        """Writes ``vocabularies/`` and ``counts/``, old ids and new ones; returns the bytes of the first."""
        return write_vocabularies(folder, self._vocabularies)


class GrownVocabulary:
    """One of them.

    Args:
        known: its file before.
        counts: int64 [ids], those of before by id.
        spool: the values of all blocks.
        folder: where the ids of each block's values are kept until they are read.
        min_count: least count in the blocks of a new value that gets an id.
        decay: factor on ``counts``.

    Attributes:
        values: the raw value of id i + 1 at position i, int64 or large_string
        counts: int64 [ids]: the decayed ones, to whole numbers, and those of the blocks
    """

    def __init__(
        self, known: Path, counts: np.ndarray, spool: ValueSpool, folder: Path, min_count: int, decay: float
    ) -> None:
        size = len(counts)
        index = ValueIndex(known, size)
        self._path = folder / f"{spool.name}.ids"
        self.counts = np.rint(counts * decay).astype(np.int64)
        unknown, counted = [], []
        with open(self._path, "wb") as file:
            for values, occurrences in spool.batches():
                ids = index.ids(values)
                np.save(file, ids)
                new = ids == OOV_ID
                np.add.at(self.counts, ids[~new], occurrences[~new])
                unknown.append(values.filter(pa.array(new)))
                counted.append(occurrences[new])
        distinct, self._codes = encode_all(unknown)
        totals = np.zeros(len(distinct), dtype=np.int64)
        for occurrences, codes in zip(counted, self._codes):
            totals[codes] += occurrences
        ranked = ranked_values(distinct, totals, min_count)
        if size + len(ranked) > MOST_IDS:
            raise UserError(
                f"vocabulary {spool.name!r} would have {size + len(ranked):,} ids, more than {MOST_IDS:,}; raise "
                "--min-count, or prepare with --ids hash64"
            )
        self.counts[OOV_ID] += totals.sum() - ranked["count"].sum()
        self.counts = np.concatenate([self.counts, ranked["count"].to_numpy()])
        self._new_ids = np.full(len(distinct), OOV_ID, dtype=np.int32)
        self._new_ids[ranked["code"].to_numpy()] = np.arange(size, size + len(ranked), dtype=np.int32)
        self.values = _joined(read_values(known, size).to_arrow(), ranked["value"].to_arrow())

    def block_ids(self) -> Iterator[np.ndarray]:
        """int32 ids of the values of each block, in the order of the spool."""
        with open(self._path, "rb") as file:
            for codes in self._codes:
                ids = np.load(file, allow_pickle=False)
                ids[ids == OOV_ID] = self._new_ids[codes]
                yield ids


def _joined(old: pa.Array, new: pa.Array) -> pa.Array:
    """All of both: integers where all are, else texts."""
    if not len(new):
        return old
    if pa.types.is_integer(old.type) and not pa.types.is_integer(new.type):
        numbers = read_integers(new)
        new = new if numbers.null_count > new.null_count else numbers
    kind = pa.int64() if pa.types.is_integer(old.type) and pa.types.is_integer(new.type) else pa.large_string()
    return pa.concat_arrays([pc.cast(old, kind), pc.cast(new, kind)])
