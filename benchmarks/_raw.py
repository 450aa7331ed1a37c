"""A file in Criteo's raw format, from the planted click model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from recsys_emb.data.sources._planted import PlantedModel

BLOCK = 1 << 16


def criteo_file(path: Path, rows: int, ids: int, header: bool = False) -> None:
    """Label, 13 integers, 26 strings of 8 hexadecimal digits; TSV as published, or with ``header`` a CSV for peers."""
    model = PlantedModel(seed=1, ids=ids, zipf=1.1, dense=13, missing=0.05, signal_fields=None)
    names = ["label", *(f"I{i}" for i in range(1, 14)), *(f"C{i}" for i in range(1, 27))]
    with open(path, "wb") as file:
        for start in range(0, rows, BLOCK):
            made = model.rows(start, min(start + BLOCK, rows))
            integers = [pl.Series(d).fill_nan(None).cast(pl.Int64) for d in made.dense]
            values = [_hexadecimal(f, column) for f, column in enumerate(made.ids)]
            frame = pl.DataFrame(dict(zip(names, [pl.Series(made.labels), *integers, *values])))
            frame.write_csv(file, include_header=header and not start, separator="," if header else "\t")


def _hexadecimal(field: int, ids: np.ndarray) -> pl.Series:
    """A different string for every id of a field; null where the id is -1."""
    mixed = ((ids.astype(np.uint64) + np.uint64(1)) * np.uint64(2654435761) + np.uint64(field)) & np.uint64(0xFFFFFFFF)
    digits = mixed.astype(">u4").view(np.uint8).reshape(-1, 4)
    letters = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)
    text = np.stack([letters[digits >> 4], letters[digits & 15]], axis=2).reshape(len(ids), 8)
    strings = pl.Series(np.ascontiguousarray(text).view("S8").ravel().astype("U8"))
    return strings.to_frame("s").select(pl.when(pl.Series(ids >= 0)).then(pl.col("s"))).to_series()
