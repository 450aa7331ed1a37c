"""Every role of a column with every Arrow type: it works with the right values, or one line says what is allowed."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_emb.data.column_types import TAKES, Role, check_type
from recsys_emb.data.encode import prepare
from recsys_emb.data.encoder import Encoder
from recsys_emb.data.frame import from_arrow, to_frame
from recsys_emb.data.options import make_source
from recsys_emb.data.sources.base import Block
from recsys_emb.data.values import distinct_codes
from recsys_emb.errors import UserError

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
ROWS = 20


def integers(kind: pa.DataType) -> Callable[[list[int]], pa.Array]:
    return lambda values: pa.array(values, pa.int64()).cast(kind)


def times(kind: pa.DataType) -> Callable[[list[int]], pa.Array]:
    """Days from the start on: a date and a timestamp of midnight are one time."""
    return lambda values: pa.array([START.replace(tzinfo=None) + dt.timedelta(days=v) for v in values]).cast(kind)


def lists(kind: pa.DataType) -> Callable[[list[int]], pa.Array]:
    return lambda values: pa.array([[v] for v in values], kind)


# How to store the integers 0, 1, 2, ... and the roles that take the column: Label, Dense, Categorical, Multi-valued and
# seQuence, Weight, Split, Time.
TYPES: dict[str, tuple[Callable[[list[int]], pa.Array], str]] = {
    "bool": (lambda values: pa.array([v == 1 for v in values]), "LDCW"),
    **{k: (integers(getattr(pa, k)()), "LDCWT") for k in ("int8", "int16", "int32", "int64")},
    **{k: (integers(getattr(pa, k)()), "LDCWT") for k in ("uint8", "uint16", "uint32", "uint64")},
    "float16": (lambda values: pa.array(np.array(values, np.float16)), "LDCWT"),
    "float32": (integers(pa.float32()), "LDCWT"),
    "float64": (integers(pa.float64()), "LDCWT"),
    "decimal32": (lambda values: pa.array([Decimal(v) for v in values], pa.decimal32(5, 2)), "LDCWT"),
    "decimal128": (lambda values: pa.array([Decimal(v) for v in values], pa.decimal128(12, 2)), "LDCWT"),
    "decimal256": (lambda values: pa.array([Decimal(v) for v in values], pa.decimal256(50, 2)), ""),
    "string": (integers(pa.string()), "LDCWST"),
    "large_string": (integers(pa.large_string()), "LDCWST"),
    "string_view": (integers(pa.string_view()), "LDCWST"),
    "dictionary of string": (lambda values: integers(pa.string())(values).dictionary_encode(), "LDCWST"),
    "dictionary of int": (lambda values: pa.array(values).dictionary_encode(), "LDCWT"),
    "dictionary of timestamp": (lambda values: times(pa.timestamp("us"))(values).dictionary_encode(), "CT"),
    "date32": (times(pa.date32()), "CT"),
    "date64": (times(pa.date64()), "CT"),
    **{f"timestamp[{u}]": (times(pa.timestamp(u)), "CT") for u in ("s", "ms", "us", "ns")},
    "timestamp[us, UTC]": (times(pa.timestamp("us", "UTC")), "CT"),
    "timestamp[ms, New York]": (times(pa.timestamp("ms", "America/New_York")), "CT"),
    "time32": (lambda values: pa.array([dt.time(v) for v in values], pa.time32("s")), "C"),
    "time64": (lambda values: pa.array([dt.time(v) for v in values], pa.time64("us")), "C"),
    "duration": (lambda values: pa.array([dt.timedelta(v) for v in values]), ""),
    "binary": (lambda values: pa.array([str(v).encode() for v in values]), "C"),
    "fixed binary": (lambda values: pa.array([f"{v:02}".encode() for v in values], pa.binary(2)), "C"),
    "list of int": (lists(pa.list_(pa.int32())), "MQ"),
    "large list of int": (lists(pa.large_list(pa.int64())), "MQ"),
    "fixed list of int": (lists(pa.list_(pa.int16(), 1)), "MQ"),
    "list of string": (lambda values: pa.array([[str(v)] for v in values]), "MQ"),
    "list of dictionary": (
        lambda values: pa.array([[str(v)] for v in values], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
        "MQ",
    ),
    "list of float": (lambda values: pa.array([[float(v)] for v in values]), "MQ"),
    "list of bool": (lambda values: pa.array([[v == 1] for v in values]), "MQ"),
    "list of decimal32": (lambda values: pa.array([[Decimal(v)] for v in values], pa.list_(pa.decimal32(5, 1))), "MQ"),
    **{
        f"list of {k}": (lambda values, k=k: pa.array([[v.as_py()] for v in times(k)(values)], pa.list_(k)), "MQ")
        for k in (pa.date32(), pa.timestamp("ns"), pa.timestamp("us", "Asia/Tokyo"))
    },
    "list of uint64": (lists(pa.list_(pa.uint64())), "MQ"),
    "list of binary": (lambda values: pa.array([[str(v).encode()] for v in values]), "MQ"),
    "list of time": (lambda values: pa.array([[dt.time(v)] for v in values]), "MQ"),
    "list of duration": (lambda values: pa.array([[dt.timedelta(v)] for v in values]), ""),
    "list of list": (lambda values: pa.array([[[v]] for v in values]), ""),
    "list of struct": (lambda values: pa.array([[{"a": v}] for v in values]), ""),
    "list view": (lambda values: pa.array([[v] for v in values], pa.list_view(pa.int64())), ""),
    "struct": (lambda values: pa.array([{"a": v} for v in values]), ""),
    "map": (lambda values: pa.array([[("a", v)] for v in values], pa.map_(pa.string(), pa.int64())), ""),
}
ROLES: dict[str, tuple[Role, list[int]]] = {
    "L": ("label", [i % 2 for i in range(ROWS)]),
    "D": ("dense", [i % 2 for i in range(ROWS)]),
    "C": ("categorical", [i % 3 for i in range(ROWS)]),
    "M": ("multi_valued", [i % 3 for i in range(ROWS)]),
    "Q": ("sequence", [i % 3 for i in range(ROWS)]),
    "W": ("weight", [i % 2 for i in range(ROWS)]),
    "S": ("split", [i % 3 for i in range(ROWS)]),
    "T": ("time", list(range(ROWS))[::-1]),
}
FIELDS: dict[str, dict[str, Any]] = {
    "L": {"label": "x"},
    "D": {"dense": ["x"]},
    "C": {"categorical": ["item", "x"], "user": "x"},
    "M": {"multi_valued": ["x"]},
    "Q": {"sequences": [{"name": "x", "target": "item"}]},
    "W": {"weight": "x"},
    "S": {"split": {"column": "x"}},
    "T": {"split": {"time": "x", "ratios": [0.5, 0.25, 0.25]}},
}
PAIRS = [pytest.param(kind, role, id=f"{ROLES[role][0]}, {kind}") for kind, role in itertools.product(TYPES, ROLES)]


def written(path: Path, column: pa.Array) -> Path:
    """A file of ``column`` beside a label and a categorical field."""
    rows = pa.table({"y": [i % 2 for i in range(ROWS)], "item": [str(i % 3) for i in range(ROWS)], "x": column})
    pq.write_table(rows, path)
    return path


def read(path: Path, role: str) -> Block:
    options = {"label": "y", "categorical": ["item"], **FIELDS[role]}
    (block,) = make_source("table", path, options=options).blocks()
    return block


def test_the_table_is_about_all_roles() -> None:
    assert {role for role, _ in ROLES.values()} == set(TAKES)


@pytest.mark.parametrize(("kind", "role"), PAIRS)
def test_a_column_of_a_file(tmp_path: Path, kind: str, role: str) -> None:
    store, taken_by = TYPES[kind]
    name, values = ROLES[role]
    path = written(tmp_path / "t.parquet", store(values))
    if role not in taken_by:
        stored = pq.read_schema(path).field("x").type
        with pytest.raises(UserError) as error:
            read(path, role)
        message = str(error.value)
        assert message.startswith(f"{path}: column 'x' (")
        assert f" is {stored}; {name} takes {'text' if role == 'S' else ''}" in message
        return
    block = read(path, role)
    if role == "S":  # texts, and none of them names a split
        assert [r.reason for r in block.rejected] == [f"split is not train, valid, test: '{v}'" for v in values]
        return
    assert not block.rejected
    if role == "L":
        assert block.labels.tolist() == values
    elif role == "D":
        assert block.frame["x"].to_list() == [float(v) for v in values]
    elif role == "W":
        assert block.weights is not None
        assert block.weights.tolist() == [float(v) for v in values]
    elif role == "T":
        assert block.split.tolist() == [2] * 5 + [1] * 5 + [0] * 10
    else:
        column = block.frame["x"] if role == "C" else block.frame["x"].explode()
        distinct, codes = distinct_codes(column)
        different = 2 if "bool" in kind else 3
        assert len(distinct) == different
        assert codes.tolist() == [[0, 1, 0][v] if different == 2 else v for v in values]


def test_a_split_column_is_text_in_any_encoding(tmp_path: Path) -> None:
    names = ["train", "valid", "test", "train"] * 5
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())):
        block = read(written(tmp_path / "t.parquet", pa.array(names).cast(kind)), "S")
        assert block.split.tolist() == [0, 1, 2, 0] * 5


@pytest.mark.parametrize("role", ROLES)
def test_nulls_alone_have_no_type(tmp_path: Path, role: str) -> None:
    """Values are missing then, as in a column of the right type: rows without label, weight, split or time are bad."""
    for column in (pa.nulls(ROWS), pa.array([None] * ROWS, pa.int64() if role in "LDCWT" else pa.string())):
        kind = column if role not in "MQ" or column.type == pa.null() else pa.nulls(ROWS, pa.list_(pa.int8()))
        block = read(written(tmp_path / "t.parquet", kind), role)
        assert len(block.rejected) == (ROWS if role in "LWST" else 0)
        if role in "DC":
            assert block.frame["x"].to_list() == [None] * ROWS
        if role in "MQ":
            assert block.frame["x"].list.len().fill_null(0).to_list() == [0] * ROWS


def test_texts_with_a_separator_are_lists_where_one_is_given(tmp_path: Path) -> None:
    path = written(tmp_path / "t.parquet", pa.array(["a|b", None] * (ROWS // 2)).dictionary_encode())
    options = {"label": "y", "categorical": ["item"], "multi_valued": [{"name": "x", "separator": "|"}]}
    (block,) = make_source("table", path, options=options).blocks()
    assert block.frame["x"].to_list() == [["a", "b"], None] * (ROWS // 2)
    with pytest.raises(UserError, match=r"multi_valued takes lists of .*, or text with a separator"):
        read(path, "M")
    with pytest.raises(UserError, match="is int64; multi_valued takes"):
        check_type("multi_valued", pa.int64(), "a column", separated=True)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([2.5] * ROWS), "column 'x': 2.5 is no id; a field with a vocabulary holds integers or texts"),
        (pa.array([[2.5]] * ROWS), "column 'x': 2.5 is no id"),
        (pa.array([Decimal("2.50")] * ROWS), "column 'x': 2.50 is no id"),
        (pa.array([2.0**60] * ROWS), r"column 'x': 1.152921504606847e\+18 is no id: from 2\^53 on several integers"),
        (pa.array([[b"\xff"]] * ROWS), "column 'x' is binary and no UTF-8 text"),
    ],
)
def test_values_that_are_no_ids_are_refused_by_file_and_column(tmp_path: Path, column: pa.Array, message: str) -> None:
    path = written(tmp_path / "t.parquet", column)
    with pytest.raises(UserError, match=f"^t.parquet: {message}"):
        read(path, "M" if pa.types.is_list(column.type) else "C")


# -- frames in memory -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """Of a field of every role that a frame has, prepared from integers; "C" is one of texts."""
    folder = tmp_path_factory.mktemp("types")
    count = range(60)
    frame = pl.DataFrame({"y": [i % 2 for i in count], "D": [i % 2 for i in count], "I": [i % 3 for i in count]})
    frame = frame.with_columns(M=pl.concat_list("I"), Q=pl.concat_list("I"), C=pl.col("I").cast(pl.String))
    frame.write_parquet(folder / "t.parquet")
    options = {
        **{"label": "y", "dense": ["D"], "categorical": ["I", "C"], "multi_valued": ["M"]},
        **{"sequences": [{"name": "Q", "target": "I"}], "split": {"ratios": [1, 1, 1]}},
    }
    prepare(make_source("table", folder / "t.parquet", options=options), folder / "out")
    return Encoder.load(folder / "out")


@pytest.mark.parametrize("way", ["arrow", "polars"])
@pytest.mark.parametrize(("kind", "role"), [p for p in PAIRS if isinstance(p.values[1], str) and p.values[1] in "DCMQ"])
def test_a_column_of_a_frame(encoder: Encoder, kind: str, role: str, way: str) -> None:
    store, taken_by = TYPES[kind]
    values = ROLES[role][1]
    good = {
        "D": values,
        "I": values,
        "C": [str(v) for v in values],
        "M": [[v] for v in values],
        "Q": [[v] for v in values],
    }
    expected = encoder.encode(to_frame(good, encoder.schema))
    table = pa.table({**good, role: store(values)})
    if way == "polars":
        if kind in ("decimal256", "list view"):
            pytest.skip("polars has no such type")
        table = from_arrow(table)
    if role not in taken_by:
        with pytest.raises(UserError, match=rf"^field '{role}' is .*; {ROLES[role][0]} takes "):
            encoder.encode(to_frame(table, encoder.schema))
        return
    encoded = encoder.encode(to_frame(table, encoder.schema))
    assert encoded.dense.equal(expected.dense)
    if "bool" in kind or "fixed binary" in kind or "time" in kind or "date" in kind:
        return  # other values than those that were prepared
    assert encoded.ids.equal(expected.ids)
    assert int(encoded.ids.min()) > 0
    for name in ("M", "Q"):
        assert encoded.jagged[name].values.equal(expected.jagged[name].values)
        assert encoded.jagged[name].offsets.equal(expected.jagged[name].offsets)
