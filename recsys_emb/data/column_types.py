"""Which types of a column each role takes: one table for Parquet files and for frames in memory.

What is not in the table is refused by name before a value is read. Dictionary-encoded columns are what they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Literal

import polars as pl
import pyarrow as pa
import pyarrow.types as is_type

from recsys_emb.errors import UserError

Role = Literal["label", "dense", "categorical", "multi_valued", "sequence", "weight", "split", "time"]
"""What a column is read as. The user is a categorical field."""

_NUMBERS = ("boolean", "integer", "float", "decimal", "text")
_IDS = ("boolean", "integer", "float", "decimal", "text", "binary", "date", "timestamp", "time")
_LISTS = tuple(f"list of {kind}" for kind in _IDS)

TAKES: Mapping[Role, tuple[str, ...]] = {
    "label": _NUMBERS,
    "dense": _NUMBERS,
    "weight": _NUMBERS,
    "categorical": _IDS,
    "multi_valued": _LISTS,
    "sequence": _LISTS,
    "split": ("text",),
    "time": ("integer", "float", "decimal", "text", "date", "timestamp"),
}
"""The kinds that a role takes, beside nulls alone, which have no type. Of texts, floats and decimals it is the values
that decide: a text may be no number, a float no id."""

_KINDS = (
    ("null", is_type.is_null),
    ("boolean", is_type.is_boolean),
    ("integer", is_type.is_integer),
    ("float", is_type.is_floating),
    ("decimal", lambda kind: is_type.is_decimal(kind) and not is_type.is_decimal256(kind)),
    ("text", lambda kind: is_type.is_string(kind) or is_type.is_large_string(kind) or is_type.is_string_view(kind)),
    ("binary", lambda kind: is_type.is_binary(kind) or is_type.is_large_binary(kind) or is_type.is_binary_view(kind)),
    ("binary", is_type.is_fixed_size_binary),
    ("date", is_type.is_date),
    ("timestamp", is_type.is_timestamp),
    ("time", is_type.is_time),
)


def kind_of(column: pa.DataType) -> str:
    """``integer``, ``text``, ``list of date``, ...; the type's own name where no role takes it."""
    if is_type.is_dictionary(column):
        return kind_of(column.value_type)
    if is_type.is_list(column) or is_type.is_large_list(column) or is_type.is_fixed_size_list(column):
        return f"list of {kind_of(column.value_type)}"
    return next((name for name, holds in _KINDS if holds(column)), str(column))


@cache
def arrow_type(dtype: pl.DataType) -> pa.DataType | None:
    """The Arrow type of a polars column; None for one that Arrow does not have, such as Python objects."""
    if dtype in (pl.Int128, pl.UInt128):
        return pa.int64()  # integers, which is all that the kind says
    if dtype == pl.Object:
        return None
    try:
        return pl.Series([], dtype=dtype).to_arrow().type
    except (pa.ArrowException, pl.exceptions.PolarsError):
        return None


def check_type(role: Role, column: pa.DataType | pl.DataType, where: str, *, separated: bool = False) -> None:
    """Raises UserError when ``role`` does not take columns of this type.

    Args:
        role: what the column is read as.
        column: its Arrow or polars type.
        where: the beginning of the message, such as ``clicks.parquet: column 'price'``.
        separated: lists may be texts with a separator between the values.
    """
    found = arrow_type(column) if isinstance(column, pl.DataType) else column
    kind = str(column) if found is None else kind_of(found)
    lists = TAKES[role] is _LISTS
    if kind in ("null", *TAKES[role]) or (lists and (kind == "list of null" or (separated and kind == "text"))):
        return
    takes = f"lists of {_either(_IDS)}, or text with a separator" if lists else _either(TAKES[role])
    raise UserError(f"{where} is {column if found is None else found}; {role} takes {takes}")


def _either(words: tuple[str, ...]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"
