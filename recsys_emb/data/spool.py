"""Blocks of encoded rows on their way from the first pass to the second, kept in one temporary file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass
class SpooledBlock:
    """n rows. Codes are positions among the distinct values of the block and field, int32.

    labels:  uint8 [n]
    split:   uint8 [n]
    weights: float32 [n], or [0] when there are none
    dense:   float64 [n, Nd], transformed, NaN where missing
    codes:   per single-valued, multi-valued and sequence field: [n], or all values of the block row after row
    lengths: per multi-valued and sequence field: int64 [n]
    """

    labels: np.ndarray
    split: np.ndarray
    weights: np.ndarray
    dense: np.ndarray
    codes: list[np.ndarray]
    lengths: list[np.ndarray]


class Spool:
    """Appends blocks to a file, then gives them back in order.

    Args:
        path: the file.
        embedded: number of fields with codes.
        jagged: how many of these, the last ones, have lengths.
    """

    def __init__(self, path: Path, embedded: int, jagged: int) -> None:
        self._path = path
        self._embedded, self._jagged = embedded, jagged
        self._file = open(path, "wb")  # noqa: SIM115  closed by blocks()
        self._blocks = 0

    def append(self, block: SpooledBlock) -> None:
        arrays = [block.labels, block.split, block.weights, block.dense, *block.codes, *block.lengths]
        for array in arrays:
            np.save(self._file, array)
        self._blocks += 1

    def blocks(self) -> Iterator[SpooledBlock]:
        """All blocks; nothing may be appended afterwards."""
        self._file.close()
        with open(self._path, "rb") as file:
            for _ in range(self._blocks):
                arrays = [np.load(file, allow_pickle=False) for _ in range(4 + self._embedded + self._jagged)]
                middle = 4 + self._embedded
                labels, split, weights, dense = arrays[:4]
                yield SpooledBlock(labels, split, weights, dense, arrays[4:middle], arrays[middle:])
