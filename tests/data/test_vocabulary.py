"""Vocabularies that are read again: a damaged one is refused, never misread."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_emb.data.vocabulary import ValueIndex, write_vocabulary
from recsys_emb.errors import UserError

STRINGS = pa.array(["x", None, "y"], pa.large_string())


def written(path: Path, array: pa.Array) -> Path:
    with pa.ipc.new_file(str(path), pa.schema([("value", array.type)])) as writer:
        writer.write_batch(pa.record_batch([array], names=["value"]))
    return path


def strings(offsets: list[int], text: bytes) -> pa.Array:
    """An array that Arrow has not checked."""
    buffers = [None, pa.py_buffer(np.array(offsets, np.int64)), pa.py_buffer(text)]
    return pa.Array.from_buffers(pa.large_string(), len(offsets) - 1, buffers)


def test_ids_of_values(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "v.arrow", STRINGS)
    index = ValueIndex(tmp_path / "v.arrow", 4)
    assert index.ids(pa.array(["y", "z", None, "x"], pa.large_string())).tolist() == [3, 0, 2, 1]


@pytest.mark.parametrize(
    "stored", [pa.array([7, -2, 2**62, 5]), pa.array(["7", "-2", "x", "5"], pa.large_string()), None]
)
def test_the_id_of_one_integer_is_that_of_a_column(tmp_path: Path, stored: pa.Array | None) -> None:
    index = ValueIndex(None if stored is None else written(tmp_path / "v.arrow", stored), 5)
    integers = [7, -2, 5, 6, 2**62, 2**63 - 1, -(2**63)]
    assert [index.id_of(value) for value in integers] == index.ids(pa.array(integers)).tolist()
    if stored is not None:
        assert [index.id_of(value) for value in integers[:4]] == [1, 2, 4, 0]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (strings([0, 1, 2**60, 2], b"ab"), "damaged vocabulary"),
        (strings([0, 1, -5, 2], b"ab"), "damaged vocabulary"),
        (strings([0, 1, 1, 2], b"\xff\xfe"), "damaged vocabulary"),
        (pa.array([0.5, 1.5, 2.5]), "damaged vocabulary .values of type double"),
        (pa.array(["x", "x", "y"], pa.large_string()), "damaged vocabulary"),
        (pa.array([3, 1, 3]), "damaged vocabulary .a value occurs twice"),
        (pa.array(["x", "y"], pa.large_string()), "2 values, the schema says 3"),
    ],
)
def test_what_is_no_vocabulary(tmp_path: Path, array: pa.Array, message: str) -> None:
    path = written(tmp_path / "v.arrow", array)
    with pytest.raises(UserError, match=f"{path}: {message}"):
        ValueIndex(path, 4)


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "v.arrow"
    write_vocabulary(path, STRINGS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged vocabulary"):
        ValueIndex(path, 4)
