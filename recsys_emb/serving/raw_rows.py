"""Raw rows of an artifact's format, block by block, with their predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recsys_emb.data.rejects import RejectLog
from recsys_emb.data.sources.base import Block, Rejected
from recsys_emb.data.split import Split
from recsys_emb.serving.artifact import Artifact

RowsDone = Callable[[int], None]
"""Called with the rows done so far."""


class Scored(NamedTuple):
    """A block of n rows.

    encoded: the rows as ids and scaled numbers
    logits:  float32 [n]
    good:    bool [n], which logits are numbers
    """

    block: Block
    encoded: Split
    logits: np.ndarray
    good: np.ndarray


def score(
    artifact: Artifact,
    blocks: Iterator[Block],
    rejects: RejectLog,
    input: Path | None,
    batch_size: int | None = None,
    progress: RowsDone | None = None,
) -> Iterator[Scored]:
    """The blocks that have rows.

    Args:
        artifact: what predicts.
        blocks: of the artifact's source.
        rejects: is told of malformed rows, and of those with numbers too large to predict with.
        input: what is read, for messages.
        batch_size: rows at a time; that of training when absent.
        progress: told of the rows done.

    Raises:
        UserError: a field is missing or of another type, or too many rows are rejected.
    """
    rows = 0
    for block in blocks:
        rejects.add(block.rejected)
        if len(block.frame):
            encoded = artifact.encoder.encode(block.frame)
            logits = artifact.predict(encoded, batch_size)
            good = np.isfinite(logits)
            rejects.add(_too_large(good, block, input))
            rows += int(good.sum())
            yield Scored(block, encoded, logits, good)
        rejects.check(rows, done=False)
        if progress is not None:
            progress(rows)
    rejects.check(rows, done=True)


def _too_large(good: np.ndarray, block: Block, input: Path | None) -> list[Rejected]:
    """Rows whose prediction is no number, because one of theirs is too large for the model."""
    lines = np.zeros(len(good), np.int64) if block.lines is None else block.lines
    return [Rejected(str(input), line, "a number is too large to predict with", "") for line in lines[~good].tolist()]
