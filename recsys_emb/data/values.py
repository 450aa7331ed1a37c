"""Raw values of categorical fields: integers or texts by what they are worth, however they were stored."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys_emb.data.column_types import check_type
from recsys_emb.data.iso_times import spell_iso
from recsys_emb.errors import UserError


def canonical(values: pl.Series, where: str = "") -> pl.Series:
    """Ids by what they are worth, however they are stored: Int64 where all are integers of 63 bits, else String.

    Whole floats (NaN is missing: what pandas makes of integers with gaps) and whole decimals are integers. Booleans are
    ``true`` and ``false``; dates, times and bytes their texts. ``distinct_codes`` spells texts of one value alike.

    Args:
        values: a column of any type that a categorical field takes (column_types.py); nulls are kept.
        where: the beginning of messages; the field's name when absent.

    Raises:
        UserError: another type, a number that is not whole, a float so large that it stands for several integers, or
            bytes that are no UTF-8.
    """
    dtype, where = values.dtype, where or f"field {values.name!r}"
    if dtype in (pl.Int64, pl.String):
        return values
    check_type("categorical", dtype, where)
    if dtype.is_float():
        return _whole_floats(values.fill_nan(None), where)
    if dtype.is_decimal():
        return _integers(_whole_decimals(values, where))
    if dtype.is_integer():
        return _integers(values)
    if isinstance(dtype, pl.Datetime):
        zone = "Z" if dtype.time_zone else ""
        utc = values.dt.convert_time_zone("UTC") if zone else values
        return utc.dt.to_string(f"%Y-%m-%d %H:%M:%S%.f{zone}")
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:
        raise UserError(f"{where} is binary and no UTF-8 text; write the bytes as text, such as hexadecimal") from None


def distinct_codes(values: pl.Series) -> tuple[pa.Array, np.ndarray]:
    """The distinct values, in order of appearance, null included, and each value's position among them, int32 [n].

    ``values`` are canonical; texts that spell one value (``spell_by_value``) are one.
    """
    distinct, codes = _dictionary(values.to_arrow())
    if not pa.types.is_integer(distinct.type):
        by_value = spell_by_value(distinct)
        if by_value is not distinct:
            distinct, merged = _dictionary(by_value)
            codes = merged[codes]
    return distinct, codes


def spelled(values: pl.Series) -> pa.Array:
    """The canonical values themselves, int64 or large_string [n], texts spelled by value."""
    array = values.to_arrow()
    return array if pa.types.is_integer(array.type) else spell_by_value(array)


def spell_by_value(texts: pa.Array) -> pa.Array:
    """large_string [n]: one text for every value that programs write in several ways; all other texts stay.

    ``3.0`` and ``3.00`` are ``3`` (but ``007`` is not 7, and ``1.10`` not 1.1: that may be a version), ``True`` and
    ``TRUE`` are ``true``, times are spelled as in iso_times.py.
    """
    _, _, data = texts.buffers()
    written = b"" if data is None else data.to_pybytes()
    if not any(mark in written for mark in _MARKS):
        return texts
    found = pc.fill_null(pc.match_substring_regex(texts, _SEVERAL_WAYS), False)
    if not pc.any(found).as_py():
        return texts
    one = pl.Series(pc.filter(texts, found)).to_frame("text")
    text = pl.col("text")
    by_value = one.select(
        pl.when(text.str.contains(":", literal=True))
        .then(spell_iso(one["text"]).str.replace(r"^([0-9:]+)(?:(\.[0-9]*[1-9])0+|\.0+)$", "${1}${2}"))
        .when(text.str.contains(".", literal=True))
        .then(text.str.replace(r"^(?:-(0)|(-?[0-9]+))\.0+$", "${1}${2}"))
        .otherwise(text.str.to_lowercase())
    )["text"]
    return pc.replace_with_mask(texts, found, by_value.to_arrow().cast(texts.type))


_MARKS = (b".0", b":", b"True", b"TRUE", b"False", b"FALSE")
"""One of them is in every text that matches ``_SEVERAL_WAYS``; to look for them in all texts at once is cheap."""

_SEVERAL_WAYS = (
    r"^(?:-?(?:0|[1-9][0-9]*)\.0+|True|TRUE|False|FALSE"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:.*|[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]*0)$"
)


def _dictionary(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    encoded = values.dictionary_encode(null_encoding="encode")
    return encoded.dictionary, encoded.indices.to_numpy(zero_copy_only=False)


def _integers(values: pl.Series) -> pl.Series:
    """Int64, or the digits where one has more than 63 bits."""
    numbers = values.cast(pl.Int64, strict=False)
    return numbers if numbers.null_count() == values.null_count() else values.cast(pl.String)


def _whole_floats(values: pl.Series, where: str) -> pl.Series:
    """Int64. From 2 to the power of its digits on, a float stands for its neighbours, too."""
    kind = str(values.dtype).lower()
    digits = {"float16": 11, "float32": 24}.get(kind, 53)
    whole = (values == values.floor()).fill_null(True) & values.is_finite().fill_null(True)
    if not whole.all():
        raise UserError(f"{where}: {values.filter(~whole)[0]} is no id; {_NO_ID}")
    exact = (values.abs() < 2**digits).fill_null(True)
    if not exact.all():
        raise UserError(
            f"{where}: {values.filter(~exact)[0]} is no id: from 2^{digits} on several integers are one {kind}; "
            "write ids as integers or texts"
        )
    return values.cast(pl.Int64)


def _whole_decimals(values: pl.Series, where: str) -> pl.Series:
    """String: their digits."""
    texts = values.cast(pl.String)
    broken = texts.str.contains(r"\.0*[1-9]").fill_null(False)
    if broken.any():
        raise UserError(f"{where}: {texts.filter(broken)[0]} is no id; {_NO_ID}")
    return texts.str.replace(r"\.0*$", "")


_NO_ID = "a field with a vocabulary holds integers or texts"
