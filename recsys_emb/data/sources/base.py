"""What a raw format gives to the encoder: which fields there are, and its rows in blocks.

The encoder (encode.py) walks ``blocks`` twice: once to count values of the training split, once to write ids.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl

from recsys_emb.data.sources._fields import DenseColumn, RawFields, SourceOptions
from recsys_emb.data.splitmix import GOLDEN, stream, uniform
from recsys_emb.errors import UserError
from recsys_emb.registry import Registry

__all__ = ["Block", "DenseColumn", "Note", "RawFields", "Rejected", "Source", "SourceOptions", "random_split"]

TRAIN, VALID, TEST = 0, 1, 2
"""Codes of ``Block.split``, positions in ``store.SPLITS``."""


@dataclass(frozen=True)
class Rejected:
    """A malformed row: where it stands, what is wrong, its text, and what in a schema would make it a good one."""

    file: str
    line: int
    reason: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Block:
    """Consecutive good rows.

    frame:    a column per field: dense Float32/Float64 with null for missing; single-valued String or integer with
              null for missing (a value of its own to the encoder); multi-valued and sequence fields List of these
    labels:   uint8 [n], 0 or 1
    split:    uint8 [n], TRAIN, VALID or TEST
    weights:  float32 [n], when the source is weighted
    rejected: malformed rows met since the block before
    lines:    int64 [n], where each row starts in its file, from 1; for formats that read line by line. A table's header
              is line 1, in Parquet too
    kept:     the columns that ``Source.keep`` asked for, when they are not of ``frame``
    """

    frame: pl.DataFrame
    labels: np.ndarray
    split: np.ndarray
    weights: np.ndarray | None = None
    rejected: list[Rejected] = field(default_factory=list)
    lines: np.ndarray | None = None
    kept: pl.DataFrame | None = None


@dataclass(frozen=True)
class Note:
    """What a user should know of the rows that a source gave: ``count`` of ``total`` ``what``.

    ``what`` goes on from the number: "ratings have a user_id that is not in users.dat".
    """

    count: int
    total: int
    what: str

    def __str__(self) -> str:
        return f"{self.count:,} of {self.total:,} {self.what} ({self.count / self.total:.1%})"


class Source(ABC):
    """A raw format.

    Args:
        path: what ``--input`` names: a file, a folder or a glob; None for sources that make their rows.
        options: the source's options.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``recsys-emb data list``."""
    Options: ClassVar[type[SourceOptions]] = SourceOptions
    needs_input: ClassVar[bool] = True

    def __init__(self, path: Path | None, options: SourceOptions) -> None:
        self.path = path
        self.options = options

    @abstractmethod
    def fields(self) -> RawFields:
        """The fields of every block."""

    @abstractmethod
    def blocks(self) -> Iterator[Block]:
        """The rows in file order; every call gives the same blocks.

        Raises:
            UserError: missing or unreadable file, missing column, empty input.
        """

    def inputs(self) -> Iterator[Block]:
        """The rows to predict, in file order. Labels are not needed and not looked at; ``Block.labels`` may be all 0.

        By default those of ``blocks``.
        """
        return self.blocks()

    def labelled(self) -> Iterator[Block]:
        """The rows to evaluate, in file order, with labels and weights; ``Block.split`` says nothing.

        By default those of ``blocks``.
        """
        return self.blocks()

    def keep(self, columns: Sequence[str]) -> None:
        """Asks that ``inputs`` passes columns of the files on, in ``Block.kept`` or as they are in ``Block.frame``.

        Raises:
            UserError: there are no such columns. By default those of the fields are all.
        """
        fields = self.fields()
        names = [d.name for d in fields.dense]
        names += [f.name for f in fields.categorical] + [s.name for s in fields.sequences]
        for column in columns:
            if column not in names:
                raise UserError(f"--keep {column}: source {self.name!r} passes on its fields: {', '.join(names)}")

    @property
    def dataset_name(self) -> str:
        """What reports call a dataset that nobody named: by default as the source."""
        return self.name

    def files(self) -> list[Path]:
        """The files below ``path``, for the record of what a dataset was made from."""
        if self.path is None:
            return []
        return sorted(f for f in self.path.iterdir() if f.is_file()) if self.path.is_dir() else [self.path]

    def notes(self) -> list[Note]:
        """Rows that a join found nothing for, or that were left out. Called after the rows have been walked."""
        return []

    def bayes(self) -> dict[str, Any]:
        """Per split, ``auc`` and ``logloss`` of the true click probabilities, for sources that know them.

        Called after ``blocks`` has been walked.
        """
        return {}


source_registry: Registry[type[Source]] = Registry("data source", "recsys_emb.data.sources", "recsys_emb.sources")
register = source_registry.register


def random_split(start: int, rows: int, ratios: tuple[float, float, float], seed: int) -> np.ndarray:
    """Split codes uint8 [rows] of rows ``start, start + 1, ...``; the same whatever the block boundaries.

    A counter-based generator (splitmix64 of seed and row number) gives each row its own uniform number.
    """
    with np.errstate(over="ignore"):
        key = np.uint64(seed) * np.uint64(GOLDEN) * np.uint64(GOLDEN)
    uniforms = uniform(stream(key, np.arange(start + 1, start + rows + 1)))
    edges = np.cumsum(np.asarray(ratios) / sum(ratios))[:2]
    return np.searchsorted(edges, uniforms, side="right").astype(np.uint8)
