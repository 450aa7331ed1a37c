"""The ids of every block's values: of vocabularies fitted on them, of hashes, or of another dataset's vocabularies."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from recsys_emb.data.like import Reference
from recsys_emb.data.schema import HASHED_IDS
from recsys_emb.data.vocabulary import ValueIndex, ValueSpool, Vocabulary, hashed_block_ids, write_vocabularies

Ids = Literal["vocabulary", "hash64"]


class BlockIds(Protocol):
    """What gives the values of every block their ids.

    Attributes:
        hashed: whether ids are hashes, of which there are no vocabularies.
        sizes: ids by vocabulary, id 0 included.
        hashed_integers: of hashed ids, whether the values are integers.
    """

    hashed: bool
    sizes: dict[str, int]
    hashed_integers: dict[str, bool]

    def by_block(self) -> dict[str, Iterator[np.ndarray]]:
        """Per vocabulary the ids of the values of each block, in the order of the spool."""

    def write(self, folder: Path) -> int:
        """Writes ``vocabularies/`` and ``counts/``; returns the bytes of the first."""


class FittedIds:
    """Ids of vocabularies that are fitted on the training split, or hashes.

    Args:
        spools: the values of all blocks by vocabulary.
        scratch: a folder for what lies on disk meanwhile.
        min_count: least training count of a value that gets an id.
        ids: of vocabularies, or hashes.
    """

    def __init__(self, spools: dict[str, ValueSpool], scratch: Path, min_count: int, ids: Ids) -> None:
        self.hashed = ids == "hash64"
        self._vocabularies: dict[str, Vocabulary] = {}
        if not self.hashed:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                made = pool.map(lambda spool: Vocabulary(spool, scratch, min_count), spools.values())
                self._vocabularies = dict(zip(spools, made))
        self.sizes = {v: HASHED_IDS if self.hashed else len(self._vocabularies[v]) for v in spools}
        self.hashed_integers = {v: spool.integers for v, spool in spools.items()} if self.hashed else {}
        self._spools = spools

    def by_block(self) -> dict[str, Iterator[np.ndarray]]:
        """Per vocabulary the ids of the values of each block, in the order of the spool."""
        if self.hashed:
            return {v: hashed_block_ids(s) for v, s in self._spools.items()}
        return {v: vocabulary.block_ids() for v, vocabulary in self._vocabularies.items()}

    def write(self, folder: Path) -> int:
        """Writes ``vocabularies/`` and ``counts/``; returns the bytes of the first."""
        return 0 if self.hashed else write_vocabularies(folder, self._vocabularies)


class ReferenceIds:
    """Ids of every block's values in the vocabularies of a reference, with the same methods.

    Args:
        reference: whose ids.
        spools: the values of all blocks by vocabulary.
    """

    def __init__(self, reference: Reference, spools: dict[str, ValueSpool]) -> None:
        schema = reference.schema
        self.hashed = schema.ids == "hash64"
        self.sizes = schema.vocabularies
        self.hashed_integers = schema.hashed_integers
        self._files = {v: reference.vocabulary_file(v) for v in spools}
        self._indexes = {
            v: ValueIndex(file, self.sizes[v], self.hashed_integers.get(v)) for v, file in self._files.items()
        }
        self._spools = spools
        self._counts = {} if self.hashed else {v: np.zeros(self.sizes[v], np.int64) for v in spools}

    def by_block(self) -> dict[str, Iterator[np.ndarray]]:
        """Per vocabulary the ids of the values of each block, in the order of the spool."""
        return {v: self._block_ids(v) for v in self._spools}

    def _block_ids(self, vocabulary: str) -> Iterator[np.ndarray]:
        for values, counts in self._spools[vocabulary].batches():
            ids = self._indexes[vocabulary].ids(values)
            if not self.hashed:
                np.add.at(self._counts[vocabulary], ids, counts)
            yield ids

    def write(self, folder: Path) -> int:
        """Writes ``vocabularies/`` and the new rows' own ``counts/``; returns the bytes of the first."""
        if self.hashed:
            return 0
        for sub in ("vocabularies", "counts"):
            (folder / sub).mkdir()
        for name, file in self._files.items():
            np.save(folder / "counts" / f"{name}.npy", self._counts[name])
            shutil.copyfile(file, folder / "vocabularies" / f"{name}.arrow")  # type: ignore[arg-type]
        return sum(f.stat().st_size for f in (folder / "vocabularies").iterdir())
