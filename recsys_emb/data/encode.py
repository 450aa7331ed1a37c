"""Raw rows to a prepared dataset, streaming: memory is bounded by the vocabularies and a block of rows.

The first pass reads the source once: it counts the values and fits the dense fields on the training rows, and spools
every block with each field's values as positions among the distinct values of the block. Then each vocabulary is put
in order. The second pass turns positions into ids, a gather per field, and writes the arrays of store.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recsys_emb.data.dense import FittedDense, standardise
from recsys_emb.data.field_checks import TargetValues
from recsys_emb.data.first_pass import FirstPass, ReportProgress, ahead
from recsys_emb.data.folder import building, checksums
from recsys_emb.data.ids import BlockIds, FittedIds, Ids, ReferenceIds
from recsys_emb.data.like import Reference
from recsys_emb.data.rejects import RejectLog
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.sources.base import Block, RawFields, Source
from recsys_emb.data.spool import SpooledBlock
from recsys_emb.data.store import FORMAT_VERSION, SPLITS
from recsys_emb.data.vocabulary import ValueSpool
from recsys_emb.data.writer import SplitWriter
from recsys_emb.errors import UserError
from recsys_emb.files import write_json


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

    def check(first: FirstPass) -> None:
        _check_splits(source.name, first.rows_of, first.clicks_of, may_be_empty=like is not None)
        if like is None:
            _check_weights(first.weighing_of)

    def number(spools: dict[str, ValueSpool], scratch: Path) -> BlockIds:
        return FittedIds(spools, scratch, min_count, ids) if like is None else ReferenceIds(like, spools)

    kept_at = out.with_name(f"{out.name}.rejected.tsv")
    with building(out, overwrite) as folder:
        manifest = encode(
            source,
            source.blocks(),
            fields,
            folder,
            number=number,
            dense=None if like is None else list(like.rows.dense),
            check=check,
            about={
                "name": name or source.dataset_name,
                "min_count": min_count,
                "like": None if like is None else str(like.path),
            },
            max_rejected=max_rejected,
            kept_at=kept_at,
            progress=progress,
        )
    kept_at.unlink(missing_ok=True)
    return manifest


def encode(
    source: Source,
    blocks: Iterator[Block],
    fields: RawFields,
    folder: Path,
    *,
    number: Callable[[dict[str, ValueSpool], Path], BlockIds],
    dense: list[FittedDense] | None,
    check: Callable[[FirstPass], None],
    about: Mapping[str, Any],
    max_rejected: float,
    kept_at: Path,
    progress: ReportProgress | None,
) -> dict[str, Any]:
    """Writes the files of a prepared dataset into an empty folder, the manifest last.

    Args:
        source: whose rows they are.
        blocks: the rows.
        fields: theirs, in the order to store them.
        folder: to write to.
        number: gives ids to the values of all blocks, by vocabulary; it may keep files in the folder that it is given.
        dense: what was fitted on the dense fields; None: fit it on the training rows.
        check: raises UserError on rows that make no dataset.
        about: what the manifest says beside what is found here.
        max_rejected: share of malformed rows from which on preparing is refused.
        kept_at: where these rows are written to then.
        progress: told of the rows done.

    Returns:
        The manifest, as written to ``dataset.json``.
    """
    started = time.perf_counter()
    report = progress or (lambda stage, rows, total: None)
    scratch = folder / "scratch"
    scratch.mkdir()
    with RejectLog(folder / "rejected.tsv", max_rejected, kept_at) as rejects:
        first = FirstPass(fields, scratch)
        first.read(blocks, rejects, report)
        rejects.check(first.rows, done=True)
    check(first)
    vocabularies = number(first.spools, scratch)
    dense = first.statistics.fit() if dense is None else dense
    schema = _schema(first.fields, vocabularies)
    targets = TargetValues(schema)
    oov = _write_splits(folder, schema, dense, first, vocabularies, targets, report)
    vocabulary_bytes = vocabularies.write(folder)
    shutil.rmtree(scratch)
    write_json(folder / "schema.json", schema.model_dump(mode="json"))
    manifest = {
        "format_version": FORMAT_VERSION,
        **about,
        "source": source.name,
        "options": source.options.model_dump(mode="json"),
        "ids": schema.ids,
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
    return manifest


def _schema(fields: RawFields, ids: BlockIds) -> DatasetSchema:
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
    first: FirstPass,
    vocabularies: BlockIds,
    targets: TargetValues,
    report: ReportProgress,
) -> dict[str, dict[str, float]]:
    """The second pass. Returns the share of values with id 0 per split and field."""
    writers = [SplitWriter(folder / split, schema) for split in SPLITS]
    done = 0
    for block, ids, jagged in ahead(_encoded(first, vocabularies)):
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
    first: FirstPass, vocabularies: BlockIds
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
