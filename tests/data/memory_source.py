"""A source of rows held in memory, and a plain-Python encoder to compare with."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from recsys_emb.data.schema import CategoricalField, SequenceField
from recsys_emb.data.sources.base import Block, DenseColumn, RawFields, Rejected, Source, SourceOptions


class MemorySource(Source):
    """Gives ``frame`` in blocks of ``block_rows`` rows."""

    name = "memory"
    summary = "rows in memory"

    def __init__(
        self,
        raw: RawFields,
        frame: pl.DataFrame,
        labels: list[int],
        split: list[int],
        weights: list[float] | None = None,
        block_rows: int = 7,
        rejected: list[Rejected] | None = None,
    ) -> None:
        super().__init__(None, SourceOptions())
        self._raw, self._frame, self._block_rows = raw, frame, block_rows
        self._labels, self._split = np.array(labels, np.uint8), np.array(split, np.uint8)
        self._weights = None if weights is None else np.array(weights, np.float32)
        self._rejected = rejected or []

    def fields(self) -> RawFields:
        return self._raw

    def blocks(self) -> Iterator[Block]:
        for start in range(0, len(self._frame), self._block_rows):
            part = slice(start, start + self._block_rows)
            weights = None if self._weights is None else self._weights[part]
            rejected = self._rejected if start == 0 else []
            yield Block(self._frame[part], self._labels[part], self._split[part], weights, rejected)


FIELDS = RawFields(
    dense=(DenseColumn("plain", "none"), DenseColumn("price", "standard"), DenseColumn("views", "log1p")),
    categorical=(
        CategoricalField(name="user", vocabulary="user"),
        CategoricalField(name="item", vocabulary="item"),
        CategoricalField(name="tags", vocabulary="tag", multi_valued=True),
    ),
    sequences=(
        SequenceField(name="history", vocabulary="item", target="item", max_length=3),
        SequenceField(name="again", vocabulary="item", target="item", max_length=3, aligned_with="history"),
    ),
    user="user",
    weighted=True,
)


def random_rows(rows: int, seed: int) -> dict[str, Any]:
    """Columns of ``FIELDS`` with missing values, empty lists, and values that only valid or test have."""
    draw = random.Random(seed)
    words = ["", "a", "b", "ab", "é", "tab\tin", "x" * 20, "12345678", "123456789", *(f"w{i}" for i in range(30))]

    def skewed(values: list[Any]) -> Any:
        return values[min(int(draw.expovariate(0.25)), len(values) - 1)]

    histories = [[skewed(range(40)) for _ in range(draw.randrange(6))] for _ in range(rows)]
    return {
        "plain": [draw.choice([None, 0.5, -2.0, 7.25]) for _ in range(rows)],
        "price": [None if draw.random() < 0.2 else draw.gauss(10, 3) for _ in range(rows)],
        "views": [None if draw.random() < 0.2 else draw.randrange(-3, 1000) for _ in range(rows)],
        "user": [draw.choice([None, skewed(words)]) for _ in range(rows)],
        "item": [draw.choice([skewed(range(40)), None, draw.randrange(-5, 2**40)]) for _ in range(rows)],
        "tags": [[skewed([*words, None]) for _ in range(draw.randrange(4))] for _ in range(rows)],
        "history": histories,
        "again": [[v + 1 for v in h] for h in histories],
        "label": [i % 3 == 0 for i in range(rows)],
        "split": [draw.choice([0, 0, 0, 1, 2]) for _ in range(rows)],
        "weight": [draw.random() for _ in range(rows)],
    }


def source_of(columns: dict[str, Any], **options: Any) -> MemorySource:
    """``random_rows`` as a source."""
    names = ["plain", "price", "views", "user", "item", "tags", "history", "again"]
    types = {"views": pl.Int64, "user": pl.String, "item": pl.Int64, "tags": pl.List(pl.String)}
    frame = pl.DataFrame({n: columns[n] for n in names}, schema_overrides=types)
    return MemorySource(FIELDS, frame, columns["label"], columns["split"], columns["weight"], **options)


def reference_vocabularies(columns: dict[str, Any], min_count: int) -> dict[str, list[Any]]:
    """Per vocabulary its values in order of ids 1, 2, ...: by falling training count, ties by value, null first."""
    counts: dict[str, Counter[Any]] = {"user": Counter(), "item": Counter(), "tag": Counter()}
    for i, split in enumerate(columns["split"]):
        if split == 0:
            counts["user"][columns["user"][i]] += 1
            counts["item"].update([columns["item"][i], *columns["history"][i][-3:], *columns["again"][i][-3:]])
            counts["tag"].update(columns["tags"][i])
    ordered = {}
    for name, counter in counts.items():
        kept = [v for v, n in counter.items() if n >= min_count]
        none_like = "" if name != "item" else -math.inf
        ordered[name] = sorted(kept, key=lambda v: (-counter[v], v is not None, none_like if v is None else v))
    return ordered
