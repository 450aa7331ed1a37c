"""Random and chronological splits of rows that come in blocks."""

from __future__ import annotations

import numpy as np

from recsys_emb.data.sources._table_options import SplitSpec
from recsys_emb.data.sources._times import TimeColumn
from recsys_emb.data.sources.base import random_split
from recsys_emb.errors import UserError


class TimeSplit:
    """Train, then valid, then test in the order of ``times``; equal times keep the order of the rows.

    Args:
        times: int64 or float64 [rows], the times of all rows.
        ratios: relative sizes of the splits, met to one row.
    """

    def __init__(self, times: np.ndarray, ratios: tuple[float, float, float]) -> None:
        edges = np.minimum(_edges(len(times), ratios), max(len(times) - 1, 0))
        self._cuts = np.partition(times, edges)[edges] if len(times) else np.zeros(2)
        # How many of the rows at the time of a cut belong before it.
        self._quota = edges - np.array([np.count_nonzero(times < cut) for cut in self._cuts])
        self._seen = np.zeros(2, dtype=np.int64)

    def codes(self, times: np.ndarray) -> np.ndarray:
        """uint8 [n], the split codes of the next n rows."""
        result = np.zeros(len(times), dtype=np.uint8)
        for k, cut in enumerate(self._cuts):
            tied = times == cut
            position = self._seen[k] + np.cumsum(tied)
            result += (times > cut) | (tied & (position > self._quota[k]))
            self._seen[k] += np.count_nonzero(tied)
        return result


class StartSplit:
    """Test from a time on, valid from an earlier one on, train before; rows of one time stay together.

    Args:
        times: int64 or float64 [rows], the times of all rows.
        spec: with ``test``; without ``valid``, its ratios divide the rows before between train and valid.
        column: that read the times.

    Raises:
        UserError: a start that is no time of the column's kind, or valid does not begin before test.
    """

    def __init__(self, times: np.ndarray, spec: SplitSpec, column: TimeColumn) -> None:
        assert spec.test is not None
        test = column.number(spec.test.start, "split.test.from")
        if spec.valid is not None:
            valid = column.number(spec.valid.start, "split.valid.from")
            if valid >= test:
                raise UserError(f"split.valid.from: {spec.valid.start} must lie before test.from, {spec.test.start}")
        else:
            before, (train, share, _) = np.sort(times[times < test]), spec.ratios
            first = round(len(before) * train / max(train + share, 1e-300))
            valid = before[first].item() if first < len(before) else test
        self._starts = np.array([valid, test])

    def codes(self, times: np.ndarray) -> np.ndarray:
        """uint8 [n], the split codes of rows."""
        return np.searchsorted(self._starts, times, side="right").astype(np.uint8)


class RandomSplit:
    """Rows at random by seed and row number (``random_split``), for rows that come in blocks."""

    def __init__(self, ratios: tuple[float, float, float], seed: int) -> None:
        self._ratios, self._seed, self._rows = ratios, seed, 0

    def codes(self, rows: int) -> np.ndarray:
        """uint8 [rows], the split codes of the next rows."""
        codes = random_split(self._rows, rows, self._ratios, self._seed)
        self._rows += rows
        return codes


class OrderSplit:
    """Train, then valid, then test in the order of the rows, for rows that come in blocks.

    Args:
        total: how many rows there are.
        ratios: relative sizes of the splits.
    """

    def __init__(self, total: int, ratios: tuple[float, float, float]) -> None:
        self._edges = _edges(total, ratios)
        self._rows = 0

    def codes(self, rows: int) -> np.ndarray:
        """uint8 [rows], the split codes of the next rows."""
        position = np.arange(self._rows, self._rows + rows)
        self._rows += rows
        return np.searchsorted(self._edges, position, side="right").astype(np.uint8)


def _edges(total: int, ratios: tuple[float, float, float]) -> np.ndarray:
    """int64 [2]: the first row of valid and of test."""
    return np.rint(np.cumsum(ratios)[:2] / sum(ratios) * total).astype(np.int64)
