"""What users hand over as a table, as a polars frame."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import polars as pl
import pyarrow as pa

from recsys_emb.data.column_types import Role, check_type
from recsys_emb.data.schema import CategoricalField, DatasetSchema
from recsys_emb.errors import UserError
from recsys_emb.files import one_line

_NO_COLUMN = (TypeError, ValueError, OverflowError, pa.ArrowException, pl.exceptions.PolarsError)
"""What polars and pyarrow raise on values that make no column."""


def to_frame(rows: Any, schema: DatasetSchema, shared: Collection[str] = ()) -> pl.DataFrame:
    """The columns of ``rows`` that the fields of ``schema`` are read from.

    Args:
        rows: a polars, pandas or Arrow table, or a dict of columns.
        schema: the fields.
        shared: fields that have one value for all rows, and no column (``shared_columns``).

    Raises:
        UserError: no table, a field without a column or with one that it should not have, or an Arrow column of a type
            that its field does not take.
    """
    if not isinstance(rows, (pl.DataFrame, pa.RecordBatch, pa.Table)) and not hasattr(rows, "keys"):
        what = type(rows).__name__
        raise UserError(f"the rows are a {what}; give a polars, pandas or Arrow table, or a dict of columns")
    arrow = isinstance(rows, (pa.RecordBatch, pa.Table))
    names = rows.schema.names if arrow else rows.columns if isinstance(rows, pl.DataFrame) else rows.keys()
    names = [str(name) for name in names]
    check_fields(schema, [*names, *shared])
    if twice := [name for name in names if name in shared]:
        raise UserError(f"field {twice[0]!r}: both shared by all rows and a column of them; give one of the two")
    if isinstance(rows, pl.DataFrame):
        return rows
    wanted = [(field, role) for field, role in roles(schema) if field not in shared]
    if arrow:
        for field, role in wanted:
            check_type(role, rows.schema.field(field).type, f"field {field!r}")
        return from_arrow(rows.select([field for field, _ in wanted]))
    return _frame({field: rows[field] for field, _ in wanted})


def shared_columns(shared: Mapping[str, Any], schema: DatasetSchema) -> dict[str, pl.Series | float]:
    """Those values that belong to fields, each as a column of one; plain numbers, which are common, as they are.

    Raises:
        UserError: a value cannot be in a column.
    """
    plain = {name: shared[name] for name, role in roles(schema) if name in shared and _is_plain(shared[name], role)}
    others = [name for name, _ in roles(schema) if name in shared and name not in plain]
    columns = _frame({name: [shared[name]] for name in others}).get_columns() if others else []
    return plain | {column.name: column for column in columns}


def _is_plain(value: Any, role: Role) -> bool:
    if type(value) is int:
        return role in ("dense", "categorical") and -(2**63) <= value < 2**63
    return type(value) is float and role == "dense"


def _frame(columns: dict[str, Any]) -> pl.DataFrame:
    try:
        return pl.DataFrame(columns)
    except _NO_COLUMN as error:
        raise UserError(f"{_culprit(columns)} ({one_line(error)})") from None


def _culprit(columns: dict[str, Any]) -> str:
    for field, values in columns.items():
        try:
            pl.DataFrame({field: values})
        except _NO_COLUMN:
            return f"field {field!r}: the values make no column of one type"
    return "the rows: the columns make no table"


def from_arrow(rows: pa.Table | pa.RecordBatch) -> pl.DataFrame:
    """A polars frame of columns that passed ``check_type``."""
    for position, column in enumerate(rows.schema):
        if (known := _polars_type(column.type)) != column.type:
            rows = rows.set_column(position, column.name, rows.column(position).cast(known))
    frame = pl.from_arrow(rows)
    assert isinstance(frame, pl.DataFrame)
    return frame


def _polars_type(column: pa.DataType) -> pa.DataType:
    """The type itself, but that polars cannot work on decimals of other than 128 bits."""
    if pa.types.is_decimal(column):
        return pa.decimal128(column.precision, column.scale)
    if pa.types.is_list(column) or pa.types.is_large_list(column):
        value = _polars_type(column.value_type)
        return column if value == column.value_type else pa.large_list(value)
    return column


def roles(schema: DatasetSchema) -> Iterator[tuple[str, Role]]:
    """Every field and what its column is read as."""
    for name in schema.dense:
        yield name, "dense"
    for field in schema.embedded:
        if not isinstance(field, CategoricalField):
            yield field.name, "sequence"
        else:
            yield field.name, "multi_valued" if field.multi_valued else "categorical"


def check_fields(schema: DatasetSchema, columns: Iterable[str]) -> None:
    """Raises UserError when a field is no column."""
    names = dict.fromkeys(columns)
    for field, _ in roles(schema):
        if field not in names:
            raise UserError(f"the rows have no field {field!r}; they have {', '.join(map(repr, names))}")
