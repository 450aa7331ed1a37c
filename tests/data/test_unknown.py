"""Shares of unknown values by field, against counting them row by row."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from recsys_emb.data.encode import prepare
from recsys_emb.data.encoder import Encoder
from recsys_emb.data.store import SPLITS, open_dataset
from recsys_emb.data.unknown import UnknownValues, unknown_warnings
from tests.data.memory_source import random_rows, source_of


def test_shares_are_those_of_values_that_training_has_not(tmp_path: Path) -> None:
    source = source_of(random_rows(200, seed=3))
    prepare(source, tmp_path / "out")
    encoder = Encoder.load(tmp_path / "out")
    whole = pl.concat([b.frame.with_columns(split=pl.Series(b.split)) for b in source.blocks()])
    counted = UnknownValues(encoder.schema)
    asked = [whole.filter(pl.col("split") == 2), whole.filter(pl.col("split") == 1)]
    for frame in asked:
        counted.add(encoder.encode(frame))
    train, others = whole.filter(pl.col("split") == 0), pl.concat(asked)
    known = {
        "user": set(train["user"]),
        "tags": {v for row in train["tags"] for v in row},
        "item": {*train["item"], *(v for f in ("history", "again") for row in train[f] for v in row[-3:])},
    }
    assert counted.shares is not None
    assert list(counted.shares) == ["user", "item", "tags", "history", "again"]
    for field, share in counted.shares.items():
        values = others[field].to_list()
        if field not in ("user", "item"):
            values = [v for row in values for v in (row[-3:] if field != "tags" else row)]
        mine = known.get(field, known["item"])
        assert share == sum(v not in mine for v in values) / len(values)
        assert 0 < share < 1
    dataset = open_dataset(tmp_path / "out")
    for name, frame in zip(SPLITS, (train, asked[1], asked[0])):
        split = UnknownValues(encoder.schema)
        split.add(encoder.encode(frame))
        assert dataset.unknown_share(name) == pytest.approx(split.shares)


def test_hashes_do_not_tell_what_training_has_seen(tmp_path: Path) -> None:
    source = source_of(random_rows(100, seed=3))
    prepare(source, tmp_path / "out", ids="hash64")
    encoder = Encoder.load(tmp_path / "out")
    counted = UnknownValues(encoder.schema)
    counted.add(encoder.encode(next(source.blocks()).frame))
    assert counted.shares is None
    assert open_dataset(tmp_path / "out").unknown_share("test") is None
    assert unknown_warnings(counted.shares) == []


def test_warnings_begin_at_half() -> None:
    assert unknown_warnings({"a": 0.49, "b": 0.5, "c": 0.999, "d": 1.0, "e": 0.0}) == [
        "field 'b': 50.0% of the values are unknown, training has not seen them",
        "field 'c': 99.9% of the values are unknown, training has not seen them",
        "field 'd': all values are unknown; are they written as in the training data?",
    ]


def test_no_rows_and_no_values_have_no_unknown_ones(tmp_path: Path) -> None:
    columns = random_rows(60, seed=3)
    columns["tags"] = [[] for _ in range(60)]
    source = source_of(columns)
    prepare(source, tmp_path / "out")
    encoder = Encoder.load(tmp_path / "out")
    counted = UnknownValues(encoder.schema)
    assert set((counted.shares or {}).values()) == {0}
    counted.add(encoder.encode(next(source.blocks()).frame))
    assert (counted.shares or {})["tags"] == 0
