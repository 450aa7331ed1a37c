"""Raw rows to a prepared dataset, streaming: memory is bounded by the vocabularies and a block of rows.

The first pass reads the source once: it counts the values and fits the dense fields on the training rows, and spools
every block with each field's values as positions among the distinct values of the block. Then each vocabulary is put
in order. The second pass turns positions into ids, a gather per field, and writes the arrays of store.py.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from recsys_emb.data.dense import DenseStatistics, FittedDense, standardise, transform
from recsys_emb.data.field_checks import TargetValues, WeighedIds
from recsys_emb.data.folder import building, checksums
from recsys_emb.data.ids import FittedIds, Ids, ReferenceIds
from recsys_emb.data.like import Reference
from recsys_emb.data.lists import check_aligned, flatten
from recsys_emb.data.rejects import RejectLog
from recsys_emb.data.schema import CategoricalField, DatasetSchema, SequenceField
from recsys_emb.data.sources.base import TRAIN, Block, RawFields, Source
from recsys_emb.data.spool import Spool, SpooledBlock
from recsys_emb.data.store import FORMAT_VERSION, SPLITS
from recsys_emb.data.values import canonical, distinct_codes
from recsys_emb.data.vocabulary import ValueSpool
from recsys_emb.data.writer import SplitWriter
from recsys_emb.errors import UserError
from recsys_emb.files import write_json

ReportProgress = Callable[[str, int, int | None], None]
"""Called with a stage (``reading`` or ``writing``), its rows done so far, and the rows in all where they are known."""


def prepare(
    source: Source,
    out: Path,
    *,
    name: str | None = None,
    min_count: int = 1,
    ids: Ids = "vocabulary",
    like: Reference | None = None,
    overwrite: bool = False,
    max_rejected: float = 0.01,
    progress: ReportProgress | None = None,
) -> dict[str, Any]:
    """Encodes a source into the folder ``out``; nothing is there until all is done.

    Args:
        source: what to read.
        out: the folder to make.
        name: what reports call the dataset; when absent the source's, or of a table the file's.
        min_count: values that occur less often in the training split get id 0.
        ids: ``vocabulary``, ids 1, 2, ... by falling training count; ``hash64``, 63-bit hashes and no vocabulary.
        like: encode with the vocabularies and the dense statistics of another; then ``min_count`` and ``ids`` are its
            own, and splits may be empty.
        overwrite: replace a prepared dataset at ``out``.
        max_rejected: share of malformed rows from which on preparing is refused.
        progress: told of the rows done.

    Returns:
        The manifest, as written to ``dataset.json``.

    Raises:
        UserError: ``out`` exists, too many malformed rows, no rows, a split without rows or with one class, or fields
            that are not those of ``like``.
    """
    if min_count < 1:
        raise UserError(f"--min-count {min_count}: must be 1 or more")
    if ids == "hash64" and min_count > 1:
        raise UserError(f"--min-count {min_count}: hash64 ids keep no counts; leave it out or use --ids vocabulary")
    if like is not None and (min_count > 1 or ids not in ("vocabulary", like.schema.ids)):
        raise UserError(f"--like {like.path}: ids are those of its vocabularies; leave out --min-count and --ids")
    fields = source.fields() if like is None else like.check(source.fields())
    started = time.perf_counter()
    report = progress or (lambda stage, rows, total: None)
    kept_at = out.with_name(f"{out.name}.rejected.tsv")
    with building(out, overwrite) as folder:
        scratch = folder / "scratch"
        scratch.mkdir()
        with RejectLog(folder / "rejected.tsv", max_rejected, kept_at) as rejects:
            first = _FirstPass(fields, scratch)
            first.read(source, rejects, report)
            rejects.check(first.rows, done=True)
        _check_splits(source.name, first.rows_of, first.clicks_of, may_be_empty=like is not None)
        if like is None:
            _check_weights(first.weighing_of)
        vocabularies: FittedIds | ReferenceIds
        if like is None:
            vocabularies, dense = FittedIds(first.spools, scratch, min_count, ids), first.statistics.fit()
        else:
            vocabularies, dense = ReferenceIds(like, first.spools), list(like.rows.dense)
        schema = _schema(first.fields, vocabularies)
        targets = TargetValues(schema)
        oov = _write_splits(folder, schema, dense, first, vocabularies, targets, report)
        vocabulary_bytes = vocabularies.write(folder)
        shutil.rmtree(scratch)
        write_json(folder / "schema.json", schema.model_dump(mode="json"))
        manifest = {
            "format_version": FORMAT_VERSION,
            "name": name or source.dataset_name,
            "source": source.name,
            "options": source.options.model_dump(mode="json"),
            "min_count": min_count,
            "ids": schema.ids,
            "like": None if like is None else str(like.path),
            "files": [{"path": str(f), "bytes": f.stat().st_size} for f in source.files()],
            "rows": dict(zip(SPLITS, first.rows_of.tolist())),
            "click_rate": dict(zip(SPLITS, (first.clicks_of / np.maximum(first.rows_of, 1)).tolist())),
            "rejected": rejects.count,
            "oov_rate": oov,
            "vocabulary_bytes": vocabulary_bytes,
            "dense": [d.model_dump() for d in dense],
            "notes": [asdict(note) for note in (*source.notes(), *first.weighed.notes(), *targets.notes())],
            "bayes": source.bayes(),
            "checksums": checksums(folder),
        }
        manifest["seconds"] = round(time.perf_counter() - started, 3)
        write_json(folder / "dataset.json", manifest)
    kept_at.unlink(missing_ok=True)
    return manifest


T = TypeVar("T")


def _ahead(blocks: Iterator[T]) -> Iterator[T]:
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


class _FirstPass:
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

    def read(self, source: Source, rejects: RejectLog, report: ReportProgress) -> None:
        """Three blocks are in work at a time: one read, one encoded, one counted and spooled."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read = _ahead((block, transform(block.frame, self.fields.dense)) for block in source.blocks())
            for block, dense, columns in _ahead((block, dense, self._encode(block, pool)) for block, dense in read):
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


def _schema(fields: RawFields, ids: FittedIds | ReferenceIds) -> DatasetSchema:
    return DatasetSchema(
        dense=tuple(d.name for d in fields.dense),
        categorical=fields.categorical,
        sequences=fields.sequences,
        vocabularies=ids.sizes,
        user=fields.user,
        weighted=fields.weighted,
        ids="hash64" if ids.hashed else "vocabulary",
        hashed_integers=ids.hashed_integers,
    )


def _check_splits(source: str, rows: np.ndarray, clicks: np.ndarray, may_be_empty: bool) -> None:
    if not rows.sum():
        raise UserError(f"source {source!r}: no rows; check --input")
    if may_be_empty:
        return
    counts = ", ".join(f"{s} {n}" for s, n in zip(SPLITS, rows.tolist()))
    for split, n, ones in zip(SPLITS, rows.tolist(), clicks.tolist()):
        if n == 0:
            raise UserError(
                f"the {split} split has no rows (rows: {counts}); change the split options, give more rows, or prepare "
                "them with the vocabularies of another dataset, --like DATASET_OR_ARTIFACT"
            )
        if ones in (0, n):
            what = "no clicks" if ones == 0 else "only clicks"
            raise UserError(
                f"the {split} split has {what} in {n} rows, so AUC is undefined; "
                "change the split options or give more rows"
            )


def _check_weights(weighing: np.ndarray) -> None:
    """``weighing`` int64 [2, splits]: rows with a weight above 0, without a click and with one."""
    for split, (others, clicks) in zip(SPLITS, weighing.T.tolist()):
        if not others or not clicks:
            what = "rows" if others == clicks else "clicks" if others else "rows without a click"
            raise UserError(
                f"the {split} split: all {what} have weight 0, so nothing is learnt or measured of them; check weight"
            )


def _write_splits(
    folder: Path,
    schema: DatasetSchema,
    dense: list[FittedDense],
    first: _FirstPass,
    vocabularies: FittedIds | ReferenceIds,
    targets: TargetValues,
    report: ReportProgress,
) -> dict[str, dict[str, float]]:
    """The second pass. Returns the share of values with id 0 per split and field."""
    writers = [SplitWriter(folder / split, schema) for split in SPLITS]
    done = 0
    for block, ids, jagged in _ahead(_encoded(first, vocabularies)):
        scaled = standardise(block.dense, dense)
        _check_finite(scaled, dense)
        targets.add(ids, jagged)
        for code, writer in enumerate(writers):
            writer.append(block.split == code, block.labels, block.weights, scaled, ids, jagged)
        done += len(block.labels)
        report("writing", done, first.rows)
    return {split: writer.close() for split, writer in zip(SPLITS, writers)}


def _check_finite(scaled: np.ndarray, dense: list[FittedDense]) -> None:
    """Raises UserError when a standardised value [n, Nd] is no number that a model can use."""
    wrong = ~np.isfinite(scaled)
    if wrong.any():
        field = dense[int(wrong.any(axis=0).argmax())].name
        raise UserError(f"field {field!r}: values too large to train with, such as 1e300; check the data")


def _encoded(
    first: _FirstPass, vocabularies: FittedIds | ReferenceIds
) -> Iterator[tuple[SpooledBlock, np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]]]]:
    """The spooled blocks with the ids of their fields, as SplitWriter takes them."""
    ids_of = vocabularies.by_block()
    singles = len(first.single)
    for block in first.spool.blocks():
        # Filled field by field and turned around at the end: faster than filling columns.
        by_field = np.empty((singles, len(block.labels)), dtype=np.int64 if vocabularies.hashed else np.int32)
        jagged = {}
        for position, (field, codes) in enumerate(zip(first.embedded, block.codes)):
            values = next(ids_of[field.vocabulary])[codes]
            if position < singles:
                by_field[position] = values
            else:
                jagged[field.name] = (values, block.lengths[position - singles])
        yield block, np.ascontiguousarray(by_field.T), jagged
