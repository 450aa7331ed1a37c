"""The first pass over raw rows: values counted, dense fields measured, blocks spooled for the second pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from recsys_emb.data.dense import DenseStatistics, transform
from recsys_emb.data.field_checks import WeighedIds
from recsys_emb.data.lists import check_aligned, flatten
from recsys_emb.data.rejects import RejectLog
from recsys_emb.data.schema import CategoricalField, SequenceField
from recsys_emb.data.sources.base import TRAIN, Block, RawFields
from recsys_emb.data.spool import Spool, SpooledBlock
from recsys_emb.data.store import SPLITS
from recsys_emb.data.values import canonical, distinct_codes
from recsys_emb.data.vocabulary import ValueSpool

ReportProgress = Callable[[str, int, int | None], None]
"""Called with a stage (``reading`` or ``writing``), its rows done so far, and the rows in all where they are known."""

T = TypeVar("T")


def ahead(blocks: Iterator[T]) -> Iterator[T]:
    """The same blocks; the next one is read in a thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(next, blocks, None)
        while (block := following.result()) is not None:
            following = pool.submit(next, blocks, None)
            yield block


class _Column(NamedTuple):
    """An embedded field of n rows.

    distinct: its values
    counts:   int64, how often each occurs in the training split
    codes:    int32 [n], or of all values row after row: positions among ``distinct``
    lengths:  int64 [n] of a multi-valued or sequence field, else [0]
    """

    distinct: pa.Array
    counts: np.ndarray
    codes: np.ndarray
    lengths: np.ndarray


class FirstPass:
    """Reads the source: values counted, dense fields measured, blocks spooled."""

    def __init__(self, fields: RawFields, scratch: Path) -> None:
        self.fields = fields
        self.single = [f for f in fields.categorical if not f.multi_valued]
        self._jagged: list[CategoricalField | SequenceField] = [
            *(f for f in fields.categorical if f.multi_valued),
            *fields.sequences,
        ]
        self.embedded: list[CategoricalField | SequenceField] = [*self.single, *self._jagged]
        self.spools = {f.vocabulary: ValueSpool(f.vocabulary, scratch) for f in self.embedded}
        self.spool = Spool(scratch / "blocks", len(self.embedded), len(self._jagged))
        self.statistics = DenseStatistics(fields.dense)
        self.weighed = WeighedIds()
        self.rows_of = np.zeros(len(SPLITS), dtype=np.int64)
        self.clicks_of = np.zeros(len(SPLITS), dtype=np.int64)
        self.weighing_of = np.zeros((2, len(SPLITS)), dtype=np.int64)  # rows with a weight above 0, by label and split

    @property
    def rows(self) -> int:
        return int(self.rows_of.sum())

    def read(self, blocks: Iterator[Block], rejects: RejectLog, report: ReportProgress) -> None:
        """Three blocks are in work at a time: one read, one encoded, one counted and spooled."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read = ahead((block, transform(block.frame, self.fields.dense)) for block in blocks)
            for block, dense, columns in ahead((block, dense, self._encode(block, pool)) for block, dense in read):
                rejects.add(block.rejected)
                if columns:
                    self._keep(block, dense, columns)
                rejects.check(self.rows, done=False)
                report("reading", self.rows, None)

    def _encode(self, block: Block, pool: ThreadPoolExecutor) -> list[_Column]:
        """The columns of the embedded fields; none when the block has no rows."""
        if not len(block.frame):
            return []
        check_aligned(self.fields.sequences, block.frame)
        is_train = block.split == TRAIN
        train = np.flatnonzero(is_train)

        def encode(field: CategoricalField | SequenceField) -> _Column:
            column = block.frame[field.name]
            if isinstance(field, SequenceField):
                flat, lengths = flatten(column, field.max_length)
            elif field.multi_valued:
                flat, lengths = flatten(column)
            else:
                flat, lengths = canonical(column), np.zeros(0, dtype=np.int64)
            distinct, codes = distinct_codes(flat)
            counted = codes[np.repeat(is_train, lengths) if len(lengths) else train]
            return _Column(distinct, np.bincount(counted, minlength=len(distinct)), codes, lengths)

        return list(pool.map(encode, self.embedded))

    def _keep(self, block: Block, dense: np.ndarray, columns: list[_Column]) -> None:
        """``dense`` float64 [n, Nd], transformed."""
        self.rows_of += np.bincount(block.split, minlength=len(SPLITS))
        self.clicks_of += np.bincount(block.split[block.labels == 1], minlength=len(SPLITS))
        for label, weighing in enumerate(self.weighing_of):
            weighs = block.labels == label if block.weights is None else (block.labels == label) & (block.weights > 0)
            weighing += np.bincount(block.split[weighs], minlength=len(SPLITS))
        self.statistics.add(dense[block.split == TRAIN])
        for field, column in zip(self.embedded, columns):
            self.spools[field.vocabulary].append(column.distinct, column.counts)
            if isinstance(field, CategoricalField) and field.multi_valued:
                self.weighed.add(field, column.distinct, column.codes)
        lengths = [c.lengths for c in columns[len(self.single) :]]
        weights = np.zeros(0, np.float32) if block.weights is None else block.weights
        codes = [c.codes for c in columns]
        self.spool.append(SpooledBlock(block.labels, block.split, weights, dense, codes, lengths))
