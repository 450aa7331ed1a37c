"""Predictions for raw rows, block by block, into a Parquet file."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_emb.data.options import make_source
from recsys_emb.data.rejects import RejectLog
from recsys_emb.data.unknown import UnknownValues
from recsys_emb.errors import UserError
from recsys_emb.files import one_line
from recsys_emb.serving.artifact import Artifact
from recsys_emb.serving.raw_rows import RowsDone, Scored, score
from recsys_emb.training import runtime

SCHEMA = pa.schema([("line", pa.int64()), ("logit", pa.float32()), ("probability", pa.float32())])


def predict_file(
    artifact: Artifact,
    input: Path | None,
    out: Path,
    batch_size: int | None = None,
    max_rejected: float = 0.01,
    keep: Sequence[str] = (),
    progress: RowsDone | None = None,
) -> dict[str, Any]:
    """Predicts every row of ``input`` and writes one row each, in their order, to ``out``.

    Columns of ``out``: ``line`` int64, where the row starts in its file (null where the format has no lines; line 1 of
    a table is its header, in Parquet too); those of ``keep``; ``logit`` float32, log-odds of a click; ``probability``
    float32.

    Args:
        artifact: what predicts.
        input: file, folder or glob in the format that the dataset was prepared from; labels may be missing. None for
            a source that makes its rows.
        out: the Parquet file.
        batch_size: rows at a time; that of training when absent.
        max_rejected: share of malformed rows, and of those with numbers too large to predict with, above which nothing
            is written. They are listed in OUT.rejected.tsv and have no row in ``out``.
        keep: columns of ``input`` that are passed on as they are, from text files as text.
        progress: told of the rows done.

    Returns:
        ``rows``, ``rejected``, ``seconds``, ``rows_per_second``, ``out``; ``unknown_share``, by field the share of
        values that training has not seen (None where ids are hashes; without the fields where fingerprints of some
        values were dropped); ``notes`` of the source, such as failed joins.

    Raises:
        UserError: ``out`` exists, unreadable or empty input, too many malformed rows.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists already; name a new file")
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size {batch_size}: must be 1 or more")
    taken = [name for name in keep if name in SCHEMA.names]
    if taken:
        raise UserError(f"--keep {taken[0]}: the predictions have a column of that name")
    source = make_source(artifact.manifest.rows.source, input, options=artifact.manifest.rows.options)
    source.keep(keep)
    runtime.configure(artifact.config.seed, artifact.manifest.precision)
    started, rows, unknown = time.perf_counter(), 0, UnknownValues(artifact.schema, artifact.encoder.tells_unknown)
    beside = f"{out.name}.{os.getpid()}"  # whoever else writes to out
    partial, rejected_now = out.with_name(f"{beside}.partial"), out.with_name(f"{beside}.rejected.partial")
    kept_at = out.with_name(f"{out.name}.rejected.tsv")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with RejectLog(rejected_now, max_rejected, kept_at) as rejects, ExitStack() as stack:
            writer: pq.ParquetWriter | None = None
            for scored in score(artifact, source.inputs(), rejects, input, batch_size, progress):
                unknown.add(scored.encoded)
                table = _table(scored, keep)
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(partial, table.schema))
                writer.write_table(_cast(table, writer.schema))
                rows += len(table)
        if not rows and not rejects.count:
            raise UserError(f"--input {input}: no rows")
        if not rows:
            rejected_now.replace(kept_at)
            raise UserError(f"--input {input}: all {rejects.count:,} rows are malformed; see {kept_at}")
        if rejects.count:
            rejected_now.replace(kept_at)
        partial.replace(out)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    finally:
        for leftover in (partial, rejected_now):
            with suppress(OSError):
                leftover.unlink()
    seconds = time.perf_counter() - started
    return {
        "out": str(out),
        "rows": rows,
        "rejected": rejects.count,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds, 1),
        "unknown_share": unknown.shares,
        "notes": [asdict(note) for note in source.notes()],
    }


def _table(scored: Scored, keep: Sequence[str]) -> pa.Table:
    """The rows that are predicted."""
    block, logits = scored.block, scored.logits
    where = pa.nulls(len(logits), pa.int64()) if block.lines is None else pa.array(block.lines, pa.int64())
    with np.errstate(over="ignore"):
        probabilities = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
    kept = (block.frame if block.kept is None else block.kept).select(keep).to_arrow()
    columns = [where, *kept.columns, pa.array(logits), pa.array(probabilities)]
    line, *others = SCHEMA
    table = pa.table(columns, schema=pa.schema([line, *kept.schema, *others]))
    return table.filter(pa.array(scored.good))


def _cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Columns that are passed on, in the types of the first file. Raises UserError when a value does not fit."""
    try:
        return table.cast(schema)
    except pa.ArrowException as error:
        raise UserError(f"--keep: the files differ in the types of their columns ({one_line(error)})") from None
