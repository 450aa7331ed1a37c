"""Criteo's text to columns, three times as fast as a general reader of delimited text."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from recsys_emb.native.build import library

FIELDS = 39


def parse(text: bytes, rows: int, names: Sequence[str], labelled: bool) -> tuple[pl.DataFrame, np.ndarray] | None:
    """Lines of the format as Int64 columns called ``names`` [39], null where empty, and labels uint8 [rows].

    Args:
        text: whole lines, ``rows`` of them.
        labelled: whether lines begin with a label; otherwise labels are all 0.

    Returns:
        None where this machine cannot, or the text has anything out of the ordinary: a malformed line, a label other
        than 0 and 1, a sign or space before a number, more than 18 digits, carriage returns.
    """
    parser = _library()
    if parser is None or not text.endswith(b"\n"):
        return None
    labels = np.zeros(rows, np.uint8)
    values = np.empty((FIELDS, rows), np.int64)
    present = np.zeros((FIELDS, -(-rows // 8)), np.uint8)
    missing = np.zeros(FIELDS, np.int64)
    pointers = (a.ctypes.data for a in (values, present, missing))
    if not parser.criteo_parse(text, len(text), rows, labels.ctypes.data if labelled else None, *pointers):
        return None
    columns = [
        pa.Array.from_buffers(pa.int64(), rows, [pa.py_buffer(bits) if absent else None, pa.py_buffer(column)], absent)
        for column, bits, absent in zip(values, present, missing.tolist())
    ]
    return pl.DataFrame(dict(zip(names, (pl.Series(c) for c in columns)))), labels


@cache
def _library() -> Any:
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is not None:
        pointer = ctypes.c_void_p
        found.criteo_parse.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_long, *[pointer] * 4]
        found.criteo_parse.restype = ctypes.c_int
    return found
