"""Ids by what they are worth: one id however a value was stored, in what is prepared and in what is predicted."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_emb.data.encode import prepare
from recsys_emb.data.encoder import Encoder
from recsys_emb.data.options import make_source
from recsys_emb.data.store import SPLITS, open_dataset
from recsys_emb.data.values import canonical, distinct_codes, spell_by_value
from recsys_emb.errors import UserError

# -- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("3.0", "3"), ("3.00", "3"), ("-12.0", "-12"), ("0.0", "0"), ("-0.0", "0"), ("10.0", "10")),
        *((t, "true") for t in ("True", "TRUE", "true")),
        *((t, "false") for t in ("False", "FALSE", "false")),
        *((t, "2026-01-31") for t in ("2026-01-31", "2026-01-31 00:00:00", "2026-01-31T00:00:00.000")),
        *(
            (t, "2026-01-31 12:30:00")
            for t in ("2026-01-31T12:30:00", "2026-01-31 12:30:00.000000", "2026-01-31 12:30")
        ),
        *((t, "2026-01-31 11:30:00Z") for t in ("2026-01-31T12:30:00+01:00", "2026-01-31 11:30:00Z")),
        ("2026-01-31 11:30:00+00:00", "2026-01-31 11:30:00Z"),
        *(("12:30:00.500", "12:30:00.5"), ("12:30:00.000000", "12:30:00"), ("12:30:00", "12:30:00")),
    ],
)
def test_texts_of_one_value(text: str, value: str) -> None:
    assert spell_by_value(pa.array([None, "x.0:", text], pa.large_string())).to_pylist() == [None, "x.0:", value]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "007",
            "007.0",
            "1.10",
            "2.50",
            "3.",
            ".0",
            "3,0",
            "1.0.0",
            "v3.0",
            "3.0 ",
            " 3.0",
            "+3.0",
            "1e5",
            "--3.0",
            "",
        ),
        *("tRue", "Truex", "T", "2026-02-30 10:00:00", "2026-01-31 25:00:00", "26-01-31 10:00:00", "12:30", "a:b.0"),
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert spell_by_value(pa.array([text, "1.0"], pa.large_string())).to_pylist() == [text, "1"]


@given(st.lists(st.one_of(st.text(), st.from_regex(r"-?[0-9]{1,3}\.0*", fullmatch=True), st.datetimes().map(str))))
def test_spelling_again_changes_nothing(texts: list[str]) -> None:
    once = spell_by_value(pa.array(texts, pa.large_string()))
    assert spell_by_value(once).equals(once)


def test_distinct_values_are_those_by_value() -> None:
    distinct, codes = distinct_codes(pl.Series(["3.0", "b", None, "3", "True", "3.00", "true", "b"]))
    assert distinct.to_pylist() == ["3", "b", None, "true"]
    assert codes.tolist() == [0, 1, 2, 0, 3, 0, 3, 1]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pl.Series([3.0, None, float("nan"), -1.0]), [3, None, None, -1]),  # pandas' integers with gaps
        (pl.Series([2.0**53 - 1, -(2.0**53) + 1]), [2**53 - 1, -(2**53) + 1]),
        (pl.Series([2.0**24 - 1], dtype=pl.Float32), [2**24 - 1]),
        (pl.Series([7, 2**63 - 1], dtype=pl.UInt64), [7, 2**63 - 1]),
        (pl.Series([7, 2**63], dtype=pl.UInt64), ["7", str(2**63)]),
        (pl.Series([7, 2**63], dtype=pl.Int128), ["7", str(2**63)]),
        (pl.Series([Decimal("3.00"), None, Decimal("-4")]), [3, None, -4]),
        (pl.Series([Decimal(10) ** 30]), ["1" + "0" * 30]),
        (pl.Series([b"abc", None]), ["abc", None]),
        (pl.Series([True, None]), ["true", None]),
        (pl.Series(["a", None], dtype=pl.Enum(["a"])), ["a", None]),
        (pl.Series([None, None]), [None, None]),
    ],
)
def test_canonical_values(values: pl.Series, expected: list[Any]) -> None:
    made = canonical(values)
    assert made.dtype in (pl.Int64, pl.String)
    assert made.to_list() == expected


@pytest.mark.parametrize(
    ("dtype", "first"), [(pl.Float16, 2**11), (pl.Float32, 2**24), (pl.Float64, 2**53), (pl.Float64, 2**60)]
)
def test_floats_that_stand_for_several_integers_are_refused(dtype: Any, first: int) -> None:
    """``first`` and ``first + 1`` are the same float, so one of the two would become the other."""
    numpy = {pl.Float16: np.float16, pl.Float32: np.float32, pl.Float64: np.float64}[dtype]
    assert numpy(first) == numpy(first + 1)
    for value in (first, -first):
        with pytest.raises(UserError, match=r"^field 'user': .* is no id: from 2\^(11|24|53) on several integers"):
            canonical(pl.Series("user", [3.0, value], dtype=dtype))
    assert canonical(pl.Series("user", [numpy(2**10)], dtype=dtype)).to_list() == [2**10]


@pytest.mark.parametrize("wrong", [2.5, 1e300, float("inf"), -0.1])
def test_floats_that_are_not_whole_are_refused(wrong: float) -> None:
    with pytest.raises(UserError, match=f"field 'user': {wrong} is no id".replace("+", "[+]")):
        canonical(pl.Series("user", [3.0, wrong]))


# -- prepared from one form, predicted from another -------------------------------------------------------------------

NUMBERS = [i % 7 - 2 for i in range(60)]
DAYS = [dt.datetime(2026, 1, 1 + i % 3, 12 * (i % 2)) for i in range(60)]
Store = Callable[[Path], Path]


def parquet(column: pa.Array) -> Store:
    def store(folder: Path) -> Path:
        pq.write_table(pa.table({"y": [i % 2 for i in range(60)], "u": column}), folder / "t.parquet")
        return folder / "t.parquet"

    return store


def csv(texts: list[str]) -> Store:
    def store(folder: Path) -> Path:
        (folder / "t.csv").write_text("y,u\n" + "".join(f"{i % 2},{text}\n" for i, text in enumerate(texts)))
        return folder / "t.csv"

    return store


FORMS: dict[str, dict[str, Store]] = {
    "integers": {
        "int8": parquet(pa.array(NUMBERS, pa.int8())),
        "int64": parquet(pa.array(NUMBERS)),
        "float32": parquet(pa.array(NUMBERS, pa.float32())),
        "decimal": parquet(pa.array([Decimal(v) for v in NUMBERS], pa.decimal128(10, 2))),
        "text": parquet(pa.array([str(v) for v in NUMBERS])),
        "text with a point": parquet(pa.array([f"{v}.0" for v in NUMBERS])),
        "bytes": parquet(pa.array([str(v).encode() for v in NUMBERS])),
        "dictionary": parquet(pa.array([str(v) for v in NUMBERS]).dictionary_encode()),
        "csv": csv([str(v) for v in NUMBERS]),
        "csv of floats": csv([f"{v}.00" for v in NUMBERS]),
    },
    "booleans": {
        "parquet": parquet(pa.array([v > 0 for v in NUMBERS])),
        "pandas": csv([str(v > 0) for v in NUMBERS]),
        "a spreadsheet": csv([str(v > 0).upper() for v in NUMBERS]),
        "polars": csv([str(v > 0).lower() for v in NUMBERS]),
    },
    "times": {
        **{f"timestamp[{u}]": parquet(pa.array(DAYS, pa.timestamp(u))) for u in ("s", "ms", "us", "ns")},
        "dictionary": parquet(pa.array(DAYS, pa.timestamp("us")).dictionary_encode()),
        "csv": csv([str(t) for t in DAYS]),
        "csv with T": csv([f"{t.isoformat()}.000000" for t in DAYS]),
        "csv as pandas writes it": csv([f"{t:%Y-%m-%d}" if t.hour == 0 else str(t) for t in DAYS]),
    },
    "times with a zone": {
        "UTC": parquet(pa.array(DAYS, pa.timestamp("us", "UTC"))),
        "Tokyo": parquet(pa.array(DAYS, pa.timestamp("ms", "Asia/Tokyo"))),
        "csv": csv([f"{t}+00:00" for t in DAYS]),
        "csv of Berlin": csv([f"{t + dt.timedelta(hours=1):%Y-%m-%dT%H:%M:%S}+0100" for t in DAYS]),
    },
}
SCHEMA = {"label": "y", "categorical": ["u"], "split": {"ratios": [1, 1, 1]}}


@pytest.mark.parametrize("ids", ["vocabulary", "hash64"])
@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind, forms in FORMS.items() for form in forms])
def test_prepared_from_one_form_and_asked_in_any(tmp_path: Path, kind: str, form: str, ids: Any) -> None:
    file = FORMS[kind][form](made(tmp_path / "in"))
    prepare(make_source("table", file, options=SCHEMA), tmp_path / "out", ids=ids)
    encoder = Encoder.load(tmp_path / "out")
    expected = None
    for other, store in FORMS[kind].items():
        block = next(make_source("table", store(made(tmp_path / other)), options=SCHEMA).inputs())
        found = encoder.encode(block.frame).ids
        expected = found if expected is None else expected
        assert found.equal(expected), other
    assert expected is not None
    values = {"integers": NUMBERS, "booleans": [v > 0 for v in NUMBERS]}.get(kind, DAYS)
    pairs = set(zip(values, expected[:, 0].tolist()))
    assert len(pairs) == len(set(values)) == len({id for _, id in pairs})
    assert all(id > 0 for _, id in pairs)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("ids", ["vocabulary", "hash64"])
@pytest.mark.parametrize(
    "stores",
    [
        [csv([str(v) for v in NUMBERS]), csv([f"{v}.0" for v in NUMBERS])],
        [parquet(pa.array(NUMBERS)), csv([f"{v}.0" for v in NUMBERS])],
        [parquet(pa.array(NUMBERS)), parquet(pa.nulls(60))],
        [parquet(pa.nulls(60)), parquet(pa.array(NUMBERS))],
        [parquet(pa.nulls(60)), csv([str(v) for v in NUMBERS])],
        [parquet(pa.array(NUMBERS)), parquet(pa.array([2**63 + v for v in NUMBERS], pa.uint64()))],
    ],
    ids=["12 and 12.0", "integers, then texts", "integers, then nulls", "nulls first", "nulls, then texts", "63 bits"],
)
def test_files_of_several_forms(tmp_path: Path, stores: list[Store], ids: Any) -> None:
    """Every value has one id over all files, and no two have the same."""
    folder = made(tmp_path / "in")
    for number, store in enumerate(stores):
        file = store(made(tmp_path / str(number)))
        file.rename(folder / f"{number}{file.suffix}")
    source = make_source("table", folder, options=SCHEMA)
    prepare(source, tmp_path / "out", ids=ids)
    dataset, found, values = open_dataset(tmp_path / "out"), [[], [], []], [[], [], []]
    for block in source.blocks():
        for code, spelled in zip(block.split, block.frame["u"].cast(pl.String)):
            values[code].append(None if spelled is None else spelled.removesuffix(".0"))
    for code, name in enumerate(SPLITS):
        found[code] = dataset.split(name).ids[:, 0].tolist()
    pairs = {pair for v, i in zip(values, found) for pair in zip(v, i)}
    assert len(pairs) == len({value for value, _ in pairs}) == len({id for _, id in pairs})


@pytest.mark.parametrize("nulls", [pa.nulls(60), pa.array([None] * 60, pa.string())], ids=["null", "string"])
def test_nulls_make_no_texts_of_integers(tmp_path: Path, nulls: pa.Array) -> None:
    folder = made(tmp_path / "in")
    for name, column in (("a", nulls), ("b", pa.array(NUMBERS)), ("c", nulls)):
        parquet(column)(folder).rename(folder / f"{name}.parquet")
    prepare(make_source("table", folder, options=SCHEMA), tmp_path / "out")
    values = pl.read_ipc(tmp_path / "out" / "vocabularies" / "u.arrow")["value"]
    assert values.dtype.is_integer()
    assert set(values) == {None, *NUMBERS}


def test_nulls_alone_in_every_file(tmp_path: Path) -> None:
    file = parquet(pa.nulls(60))(tmp_path)
    prepare(make_source("table", file, options=SCHEMA), tmp_path / "out")
    encoder = Encoder.load(tmp_path / "out")
    assert encoder.encode(pl.DataFrame({"u": [None, 3]})).ids.tolist() == [[1], [0]]
    assert encoder.encode(pl.DataFrame({"u": [None, "a"]})).ids.tolist() == [[1], [0]]


def test_texts_for_a_vocabulary_of_integers(tmp_path: Path) -> None:
    file = parquet(pa.array([5, 6, None] * 20))(tmp_path)
    prepare(make_source("table", file, options=SCHEMA), tmp_path / "out")
    asked = ["5", "6.0", None, "05", "x", "", "7", str(2**70), "-5"]
    ids = Encoder.load(tmp_path / "out").encode(pl.DataFrame({"u": asked})).ids[:, 0].tolist()
    known = pl.read_ipc(tmp_path / "out" / "vocabularies" / "u.arrow")["value"].to_list()
    assert [None if i == 0 else known[i - 1] for i in ids] == [5, 6, None, *[None] * 6]
    assert ids[3:] == [0] * 6
    assert ids[2] > 0
