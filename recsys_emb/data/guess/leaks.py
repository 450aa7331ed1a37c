"""Columns that alone predict the label: most are known only after the click."""

from __future__ import annotations

import numpy as np
import polars as pl

from recsys_emb.data.guess.sample import Column

LEAK = 0.95
_LEAST = 20
"""Rows of each class that it takes to judge."""


def leak(column: Column, clicks: np.ndarray) -> float | None:
    """The AUC with which a column alone orders the rows, from ``LEAK`` on; None below.

    Tried are whether a value is missing, numbers by size, and values by the click rate that they have in the other half
    of the rows.

    Args:
        column: of n rows.
        clicks: bool [n].
    """
    if min(clicks.sum(), (~clicks).sum()) < _LEAST:
        return None
    best, there = 0.0, column.values.is_not_null().to_numpy()
    if not there.all():
        best = _either(there.astype(float), clicks)
    mine = clicks[there]
    if min(mine.sum(), (~mine).sum()) >= _LEAST and not column.values.dtype.is_nested():
        if column.numbers is not None:
            best = max(best, _either(column.numbers.fill_null(0).to_numpy(), mine))
        best = max(best, _area(_rates(column.texts, mine), mine))
    return best if best >= LEAK else None


def _rates(values: pl.Series, clicks: np.ndarray) -> np.ndarray:
    """float64 [n]: the click rate of each row's value among the other half of the rows; 0.5 where it is not there."""
    half = np.random.default_rng(0).integers(0, 2, len(clicks))
    frame = pl.DataFrame({"value": values, "half": half, "click": clicks.astype(float)})
    rates = frame.group_by("value", "half").agg(pl.col("click").mean().alias("rate"))
    other = rates.with_columns(half=1 - pl.col("half"))
    joined = frame.join(other, on=["value", "half"], how="left", maintain_order="left", nulls_equal=True)
    return joined["rate"].fill_null(0.5).to_numpy()


def _either(scores: np.ndarray, clicks: np.ndarray) -> float:
    area = _area(scores, clicks)
    return max(area, 1 - area)


def _area(scores: np.ndarray, clicks: np.ndarray) -> float:
    """The AUC, from ranks (Mann and Whitney)."""
    ranks = pl.Series(scores).rank("average").to_numpy()
    clicked, others = int(clicks.sum()), int((~clicks).sum())
    return float((ranks[clicks].sum() - clicked * (clicked + 1) / 2) / (clicked * others))
