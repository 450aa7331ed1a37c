"""Numeric fields: transform, then standardise by the mean and deviation of the training split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from recsys_emb.data.sources.base import DenseColumn
from recsys_emb.errors import UserError


class FittedDense(BaseModel):
    """A numeric field with what was fitted on the training split: value = (transform(x) - mean) / std."""

    model_config = ConfigDict(frozen=True)

    name: str
    transform: Literal["none", "standard", "log1p"]
    mean: float = 0.0
    std: float = 1.0


def read_numbers(values: pl.Series) -> tuple[pl.Series, pl.Series]:
    """Float64 [n] of a column of any type that a dense field takes (column_types.py), and bool [n]: what is no number.

    Null where a value is missing (null or NaN) or no finite number.
    """
    if values.dtype in (pl.Categorical, pl.Enum):
        values = values.cast(pl.String)
    text = values.str.strip_chars() if values.dtype == pl.String else values
    read = text.cast(pl.Float64, strict=False)
    missing = values.is_null() | (text == "NaN" if values.dtype == pl.String else read.is_nan())
    numbers = read.set(~read.is_finite(), None)
    return numbers, numbers.is_null() & ~missing.fill_null(True)


def transform(frame: pl.DataFrame, columns: Sequence[DenseColumn | FittedDense]) -> np.ndarray:
    """float64 [n, Nd] of the columns after ``log1p`` where that is asked for; NaN where a value is missing."""
    return transformed([frame[c.name] for c in columns], columns, len(frame))


def transformed(
    numbers: Sequence[pl.Series | float], columns: Sequence[DenseColumn | FittedDense], rows: int
) -> np.ndarray:
    """As ``transform``, of columns of numbers; a number, or a column of one, stands for as many as there are ``rows``.

    Without polars' expressions, which take longer to start than the few values of a request.
    """
    values = np.empty((rows, len(columns)))
    for position, column in enumerate(numbers):
        if isinstance(column, pl.Series):
            values[:, position] = (column if column.dtype in _PLAIN else column.cast(pl.Float64)).to_numpy()
        else:
            values[:, position] = column
    logs = [position for position, c in enumerate(columns) if c.transform == "log1p"]
    if logs:
        # log(1 + |x|) and log1p(|x|) differ by less than float32 resolves, and the first is much faster.
        every = slice(None) if len(logs) == len(columns) else logs
        chosen = values[:, every]
        values[:, every] = np.sign(chosen) * np.log(np.abs(chosen) + 1)
    return values


_PLAIN = (pl.Float64, pl.Float32, pl.Int64, pl.Int32)
"""Types whose columns numpy takes as they are, nulls as NaN."""


def standardise(values: np.ndarray, columns: Sequence[FittedDense]) -> np.ndarray:
    """float32 [n, Nd] of transformed values; a missing one becomes 0, which is the mean, one too large infinite."""
    mean = np.array([c.mean for c in columns])
    std = np.array([c.std for c in columns])
    with np.errstate(over="ignore"):
        scaled = ((values - mean) / std).astype(np.float32)
    scaled[np.isnan(scaled)] = 0
    return scaled


class DenseStatistics:
    """Mean and deviation of the present values, block by block: sums in float64 of values minus the first ones."""

    def __init__(self, columns: Sequence[DenseColumn]) -> None:
        self._columns = columns
        self._n, self._sum, self._squares = (np.zeros(len(columns)) for _ in range(3))
        self._shift = np.full(len(columns), np.nan)

    def add(self, values: np.ndarray) -> None:
        """``values`` float64 [n, Nd], NaN where missing."""
        for column in np.flatnonzero(np.isnan(self._shift)):
            present = np.flatnonzero(~np.isnan(values[:, column]))
            self._shift[column] = values[present[0], column] if len(present) else np.nan
        shifted = values - self._shift
        missing = np.isnan(shifted)
        shifted[missing] = 0
        self._n += len(values) - missing.sum(axis=0)
        self._sum += shifted.sum(axis=0)
        self._squares += np.einsum("ij,ij->j", shifted, shifted)

    def fit(self) -> list[FittedDense]:
        """One per column; a column without spread gets deviation 1.

        Raises:
            UserError: values so large that their squares are no numbers.
        """
        n = np.maximum(self._n, 1)
        means = np.nan_to_num(self._shift) + self._sum / n
        with np.errstate(over="ignore", invalid="ignore"):
            deviations = np.sqrt(np.maximum(self._squares / n - (self._sum / n) ** 2, 0))
        fitted = []
        for column, mean, std in zip(self._columns, means.tolist(), deviations.tolist()):
            if column.transform != "none" and not np.isfinite([mean, std]).all():
                raise UserError(
                    f"field {column.name!r}: values too large to standardise, such as 1e300; check the data"
                )
            known = {} if column.transform == "none" else {"mean": mean, "std": std or 1.0}
            fitted.append(FittedDense(name=column.name, transform=column.transform, **known))
        return fitted
