"""A prepared folder as plain columns: the same rows for a peer, histories padded as it wants them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Columns:
    """The training rows.

    ids: int64 [n] by field; dense: float32 [n] by field; labels: float32 [n].
    histories: int64 [n, max_length] by sequence field, newest last, 0 before the first; ``lengths`` int64 [n].
    """

    schema: dict[str, Any]
    labels: np.ndarray
    dense: dict[str, np.ndarray]
    ids: dict[str, np.ndarray]
    histories: dict[str, np.ndarray]
    lengths: np.ndarray | None

    def vocabulary_size(self, field: dict[str, Any]) -> int:
        return self.schema["vocabularies"][field["vocabulary"]]


def read_columns(folder: Path, split: str = "train", limit: int = 1 << 18) -> Columns:
    """The first ``limit`` rows of a split."""
    schema = json.loads((folder / "schema.json").read_text())

    def load(name: str) -> np.ndarray:
        return np.load(folder / split / f"{name}.npy", mmap_mode="r")

    rows = slice(0, limit)
    labels, dense, ids = (load(n)[rows] for n in ("labels", "dense", "ids"))
    histories, lengths = {}, None
    for field in schema["sequences"]:
        values, offsets = load(f"{field['name']}.values"), load(f"{field['name']}.offsets")[: limit + 1]
        lengths = np.diff(offsets)
        padded = np.zeros((len(lengths), field["max_length"]), dtype=np.int64)
        before = field["max_length"] - lengths
        columns = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - before, lengths)
        padded[np.repeat(np.arange(len(lengths)), lengths), columns] = values[: offsets[-1]]
        histories[field["name"]] = padded
    return Columns(
        schema,
        labels.astype(np.float32),
        {n: np.ascontiguousarray(dense[:, i]) for i, n in enumerate(schema["dense"])},
        {f["name"]: ids[:, i].astype(np.int64) for i, f in enumerate(schema["categorical"])},
        histories,
        lengths,
    )
