"""List columns of multi-valued and sequence fields: taken apart, put together, and aligned with one another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import polars as pl
import pyarrow as pa

from recsys_emb.data.column_types import check_type
from recsys_emb.data.schema import SequenceField
from recsys_emb.data.values import canonical
from recsys_emb.errors import UserError

Columns = Mapping[str, pl.Series] | pl.DataFrame
"""Columns by name; one of a single value stands for as many as the others have."""


def flatten(lists: pl.Series, max_length: int | None = None, where: str = "") -> tuple[pl.Series, np.ndarray]:
    """The canonical values of a list column, row after row, and the lengths int64 [n]; a null list is an empty one.

    Args:
        lists: a column of any type that such a field takes (column_types.py).
        max_length: of a sequence: only so many entries of each list are kept, the last ones.
        where: the beginning of messages; the field's name when absent.

    Raises:
        UserError: another type, or values that are no ids (``canonical``).
    """
    where = where or f"field {lists.name!r}"
    check_type("multi_valued" if max_length is None else "sequence", lists.dtype, where)
    lists = _lists(lists)
    if max_length is not None:
        lists = lists.list.tail(max_length)
    lengths = list_lengths(lists)
    flat = lists.filter(lengths > 0).explode()
    return canonical(flat, where), lengths


def canonical_lists(lists: pl.Series, where: str) -> pl.Series:
    """The same lists of canonical values. Raises UserError as ``flatten``."""
    if lists.dtype in (pl.List(pl.Int64), pl.List(pl.String)):
        return lists
    values, lengths = flatten(lists, where=where)
    return list_column(values.alias(lists.name), lengths)


def list_lengths(lists: pl.Series) -> np.ndarray:
    """int64 [n]; 0 where there is no list."""
    return _lists(lists).list.len().fill_null(0).cast(pl.Int64).to_numpy()


def list_column(values: pl.Series, lengths: np.ndarray) -> pl.Series:
    """The list column of ``values`` row after row: what ``flatten`` takes apart."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    lists = pl.from_arrow(pa.LargeListArray.from_arrays(offsets, values.to_arrow()))
    assert isinstance(lists, pl.Series)
    return lists.alias(values.name)


def misaligned(sequences: Iterable[SequenceField], columns: Columns) -> Iterator[tuple[SequenceField, np.ndarray]]:
    """Every sequence that is aligned with another, and bool [n]: the rows where the two differ in length."""
    for field in sequences:
        if field.aligned_with is not None:
            yield field, list_lengths(columns[field.name]) != list_lengths(columns[field.aligned_with])


def check_aligned(sequences: Iterable[SequenceField], columns: Columns) -> None:
    """Raises UserError when aligned sequences of a row differ in length."""
    for field, wrong in misaligned(sequences, columns):
        if wrong.any():
            row, other = int(wrong.argmax()), field.aligned_with
            own, its = (_length(columns[name], row) for name in (field.name, str(other)))
            raise UserError(
                f"sequence {field.name!r}: rows differ in length from {other!r}, which it is aligned with, "
                f"such as row {row} of these (from 0): {own} values against {its}"
            )


def _length(lists: pl.Series, row: int) -> int:
    """Of the list in a row; a column of one list has it in every row."""
    return list_lengths(lists if len(lists) == 1 else lists[row : row + 1]).item()


def _lists(lists: pl.Series) -> pl.Series:
    if isinstance(lists.dtype, pl.Array):
        return lists.arr.to_list()
    return lists.cast(pl.List(pl.String)) if lists.dtype == pl.Null else lists
