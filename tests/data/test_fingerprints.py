"""Fingerprints of vocabularies against the vocabularies: known values as they are served, unknown ones 1 in 2^f."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from recsys_emb.data import fingerprints
from recsys_emb.data.encode import prepare
from recsys_emb.data.fingerprints import FingerprintIndex, fingerprint_index, most_bytes
from recsys_emb.data.options import make_source
from recsys_emb.data.store import open_dataset
from recsys_emb.data.vocabulary import ValueIndex, read_values, write_vocabulary
from recsys_emb.errors import UserError


def texts(n: int, seed: int = 0) -> pl.Series:
    numbers = np.random.default_rng(seed).permutation(1 << 20)[:n]
    return pl.Series([f"{x:08x}" for x in numbers], dtype=pl.String)


def arrow(values: pl.Series) -> pa.Array:
    return (values.cast(pl.Int64) if values.dtype.is_integer() else values).to_arrow()


def own_rows(values: pl.Series) -> np.ndarray:
    return np.arange(len(values) + 1)


def codes(size: int, head: int, classes: int, served: int) -> np.ndarray:
    """As codes do it: ids below ``head`` have rows of their own, those below ``served`` share some, others id 0's."""
    ids = np.arange(size)
    shared = head + np.random.default_rng(1).integers(0, classes, size)
    shared = np.where(ids < head, ids, np.where(ids < served, shared, 0))
    least = {int(row): int(i) for i, row in reversed([*enumerate(shared)])}
    return np.array([least[int(row)] for row in shared])


FORMS = {
    "rows of their own": own_rows,
    "codes": lambda values: codes(len(values) + 1, 50, 8, len(values)),
    "codes, rare ones as id 0": lambda values: codes(len(values) + 1, 50, 8, len(values) // 2),
    "all as id 0": lambda values: np.zeros(len(values) + 1, np.int64),
    "all one row but id 0": lambda values: np.minimum(np.arange(len(values) + 1), 1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bits", [1, 8])
@pytest.mark.parametrize("n", [0, 1, 4, 3_000])
def test_known_values_are_served_as_with_the_exact_vocabulary(tmp_path: Path, form: str, bits: int, n: int) -> None:
    for values in (texts(n), pl.Series(np.arange(n)[::-1] * 3, dtype=pl.Int64)):
        served_as = FORMS[form](values)
        FingerprintIndex.build(values, served_as, bits).save(tmp_path / "v")
        index = FingerprintIndex.load(tmp_path / "v", n + 1)
        assert (index.ids(arrow(values)) == served_as[1:]).all()
        assert index.ids(pa.nulls(1, pa.large_string())).tolist() == [0]
        assert index.tells_unknown == bool((served_as[1:] != 0).all())


def test_values_are_known_however_they_are_stored() -> None:
    numbers = FingerprintIndex.build(pl.Series([7, 5]), np.arange(3), 8)
    assert numbers.ids(pa.array(["5", "7"], pa.large_string())).tolist() == [2, 1]
    words = FingerprintIndex.build(pl.Series(["7", None, "x"]), np.arange(4), 8)
    assert words.ids(pa.array([7])).tolist() == [1]
    assert words.ids(pa.array(["x", None, "7"], pa.large_string())).tolist() == [3, 2, 1]


@pytest.mark.parametrize("form", ["rows of their own", "codes, rare ones as id 0"])
@pytest.mark.parametrize("bits", [4, 8])
def test_one_in_2_to_the_f_unknown_values_is_taken_for_a_known_one(form: str, bits: int) -> None:
    values = texts(4_000)
    index = FingerprintIndex.build(values, FORMS[form](values), bits)
    unknown = pl.Series([f"not {i}" for i in range(40_000)])
    ids = index.ids(arrow(unknown))
    assert ids.min() == 0
    assert ids.max() < index.size
    expected = len(unknown) / 2**bits
    assert abs((ids != 0).sum() - expected) < 5 * expected**0.5
    assert index.taken_for_known() == pytest.approx(2**-bits, abs=5 * (2**-bits / 2**16) ** 0.5)


def test_values_with_one_row_share_short_numbers() -> None:
    """Of 3,000 entries 50 have rows of their own: 11 bits beside the fingerprint would do without, 3 do."""
    values = texts(3_000)
    plain, shared = (FingerprintIndex.build(values, FORMS[form](values), 8) for form in ("rows of their own", "codes"))
    assert plain.long is None
    assert plain.entries.width == 8 + 12
    assert shared.long is not None
    assert shared.entries.width <= 8 + 4
    sizes = [sum(len(r.packed) for r in (i.entries, i.long) if r is not None) for i in (plain, shared)]
    assert sizes[1] < 0.7 * sizes[0]


@pytest.mark.parametrize("n", [1, 2, 5, 100, 3_000, 50_000])
def test_the_most_that_an_index_takes_is_known_beforehand(tmp_path: Path, n: int) -> None:
    for form in ("rows of their own", "codes"):
        values = texts(n)
        size = FingerprintIndex.build(values, FORMS[form](values), 8).save(tmp_path / "v")
        assert size <= most_bytes(n + 1, 8) < size + 1000 or form == "codes"


def test_two_values_of_one_hash_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_vocabulary(tmp_path / "v.arrow", pa.array(["x", "y", "z"], pa.large_string()))
    monkeypatch.setattr(fingerprints, "hash63", lambda values: np.full(len(values), 7))
    with pytest.raises(UserError, match="two values have the same hash; only --vocabulary exact holds both"):
        fingerprint_index(tmp_path / "v.arrow", np.arange(4), 8)


def damage(change: Any) -> Any:
    return lambda file: save_file(change(load_file(file)), file)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(b"no tensors"),
        lambda file: file.write_bytes(file.read_bytes()[:-20]),
        lambda file: file.unlink(),
        damage(lambda a: {k: v for k, v in a.items() if k != "sizes"}),
        damage(lambda a: {k: v for k, v in a.items() if k != "entries"}),
        damage(lambda a: {**a, "entries": a["entries"][:-1]}),
        damage(lambda a: {**a, "entries": a["entries"].astype(np.int64)}),
        damage(lambda a: {**a, "sizes": a["sizes"][:-1]}),
        damage(lambda a: {**a, "sizes": -a["sizes"]}),
        damage(lambda a: {**a, "sizes": a["sizes"] * 2}),
        damage(lambda a: {**a, "more": a["sizes"]}),
        damage(lambda a: {**a, "short": a["short"] - 10**6}),
        damage(lambda a: {**a, "short": a["short"] + 10**6}),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, change: Any) -> None:
    values = texts(500)
    FingerprintIndex.build(values, FORMS["codes"](values), 8).save(tmp_path / "v")
    assert FingerprintIndex.load(tmp_path / "v", 501).long is not None
    change(tmp_path / "v")
    with pytest.raises(UserError, match=r"v: damaged vocabulary .*; compact the run again"):
        FingerprintIndex.load(tmp_path / "v", 501)


def test_another_number_of_ids_is_refused(tmp_path: Path) -> None:
    FingerprintIndex.build(texts(5), np.arange(6), 8).save(tmp_path / "v")
    with pytest.raises(UserError, match="v: fingerprints of 6 ids, the schema says 7; compact the run again"):
        FingerprintIndex.load(tmp_path / "v", 7)


def test_every_value_of_real_vocabularies(real_data: Path, tmp_path: Path) -> None:
    schema = Path(__file__).parents[2] / "datasets/movielens-1m/ctr.yaml"
    prepare(make_source("table", real_data / "ml-1m/ctr.parquet", schema), tmp_path / "ml")
    dataset = open_dataset(tmp_path / "ml")
    assert sum(dataset.schema.vocabularies.values()) > 9_000
    for name, size in dataset.schema.vocabularies.items():
        file = tmp_path / f"ml/vocabularies/{name}.arrow"
        values = arrow(read_values(file, size))
        exact = ValueIndex(file, size).ids(values)
        for served_as in (np.arange(size), codes(size, size // 3 + 1, 8, size // 2 + 1)):
            assert (fingerprint_index(file, served_as, 8).ids(values) == served_as[exact]).all()


@pytest.mark.stress
def test_33_million_values() -> None:
    values = pl.Series(np.arange(33_000_000) * 7)
    served_as = np.arange(len(values) + 1)
    index = FingerprintIndex.build(values, served_as, 8)
    assert (index.ids(arrow(values)) == served_as[1:]).all()
    assert len(index.entries.packed) < 1.08 * len(values) * (8 + 25) / 8
    unknown = pa.array(np.arange(1_000_000) * 7 + 1)
    assert (index.ids(unknown) != 0).mean() == pytest.approx(1 / 256, abs=5 * (1 / 256 / 1e6) ** 0.5)
