"""Preparing against a plain-Python encoder, and everything that preparing refuses."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from recsys_emb.data.describe import describe
from recsys_emb.data.encode import prepare
from recsys_emb.data.encoder import Encoder
from recsys_emb.data.folder import checksums
from recsys_emb.data.hashes import hash63
from recsys_emb.data.schema import HASHED_IDS, CategoricalField
from recsys_emb.data.sources.base import DenseColumn, RawFields, Rejected
from recsys_emb.data.store import SPLITS, Jagged, open_dataset
from recsys_emb.data.values import canonical
from recsys_emb.errors import UserError
from tests.data.memory_source import MemorySource, random_rows, reference_vocabularies, source_of


def rows_of(jagged: Jagged) -> list[list[int]]:
    return [jagged.values[a:b].tolist() for a, b in zip(jagged.offsets[:-1], jagged.offsets[1:])]


@pytest.mark.parametrize("block_rows", [7, 1000])
@pytest.mark.parametrize("min_count", [1, 3])
def test_ids_equal_a_dictionary_encoder(tmp_path: Path, min_count: int, block_rows: int) -> None:
    columns = random_rows(400, seed=min_count)
    prepare(source_of(columns, block_rows=block_rows), tmp_path / "out", min_count=min_count)
    dataset = open_dataset(tmp_path / "out")
    reference = reference_vocabularies(columns, min_count)
    ids = {name: {v: i + 1 for i, v in enumerate(values)} for name, values in reference.items()}
    assert any(len(v) > 3 for v in reference.values())
    for name, values in reference.items():
        stored = pa.ipc.open_file(str(tmp_path / "out" / "vocabularies" / f"{name}.arrow")).read_all()
        assert stored.column("value").to_pylist() == values
        assert dataset.schema.vocabularies[name] == len(values) + 1
    for code, split_name in enumerate(SPLITS):
        split = dataset.split(split_name)
        mine = [i for i, s in enumerate(columns["split"]) if s == code]
        pairs = [[ids["user"].get(columns["user"][i], 0), ids["item"].get(columns["item"][i], 0)] for i in mine]
        assert split.ids.tolist() == pairs
        assert split.labels.tolist() == [columns["label"][i] for i in mine]
        assert split.weights is not None
        np.testing.assert_allclose(split.weights, [columns["weight"][i] for i in mine], rtol=1e-6)
        assert rows_of(split.jagged["tags"]) == [[ids["tag"].get(v, 0) for v in columns["tags"][i]] for i in mine]
        for field in ("history", "again"):
            kept = [[ids["item"].get(v, 0) for v in columns[field][i][-3:]] for i in mine]
            assert rows_of(split.jagged[field]) == kept


@pytest.mark.parametrize("values", [["b", None, "a", "Z"], [3, None, -1, 2]])
def test_missing_goes_first_among_values_of_one_count(tmp_path: Path, values: list[Any]) -> None:
    raw = RawFields(categorical=(CategoricalField(name="c", vocabulary="c"),))
    split = [0] * 8 + [1] * 8 + [2] * 8
    source = MemorySource(raw, pl.DataFrame({"c": values * 6}), [0, 1, 1, 0] * 6, split)
    prepare(source, tmp_path / "out")
    order = [None, *sorted(v for v in values if v is not None)]
    train = open_dataset(tmp_path / "out").split("train")
    assert train.ids[:4, 0].tolist() == [order.index(v) + 1 for v in values]


def test_counts_are_training_occurrences(tmp_path: Path) -> None:
    columns = random_rows(300, seed=5)
    manifest = prepare(source_of(columns), tmp_path / "out", min_count=3)
    dataset = open_dataset(tmp_path / "out")
    train = dataset.split("train")
    occurrences = {
        "user": [train.ids[:, 0]],
        "tag": [train.jagged["tags"].values],
        "item": [train.ids[:, 1], train.jagged["history"].values, train.jagged["again"].values],
    }
    for name, arrays in occurrences.items():
        expected = np.bincount(np.concatenate(arrays), minlength=dataset.schema.vocabularies[name])
        assert dataset.counts(name).tolist() == expected.tolist()
        assert dataset.counts(name).dtype == np.int64
        assert (np.diff(dataset.counts(name)[1:]) <= 0).all()
    test = dataset.split("test")
    assert manifest["oov_rate"]["test"]["user"] == pytest.approx(float((test.ids[:, 0] == 0).float().mean()))
    assert manifest["oov_rate"]["test"]["tags"] == pytest.approx(
        float((test.jagged["tags"].values == 0).float().mean())
    )


def test_dense_fields_are_standardised_on_the_training_split(tmp_path: Path) -> None:
    columns = random_rows(300, seed=6)
    prepare(source_of(columns), tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")

    def log(x: float) -> float:
        return math.copysign(math.log1p(abs(x)), x)

    transforms = {"plain": None, "price": float, "views": log}
    for position, (name, transform) in enumerate(transforms.items()):
        values = [columns[name][i] for i, s in enumerate(columns["split"]) if s == 0]
        present = [transform(v) for v in values if v is not None] if transform else [0.0]
        mean, std = (statistics.fmean(present), statistics.pstdev(present)) if transform else (0.0, 1.0)
        for code, split_name in enumerate(SPLITS):
            rows = [columns[name][i] for i, s in enumerate(columns["split"]) if s == code]
            expected = [0.0 if v is None else ((transform(v) if transform else v) - mean) / std for v in rows]
            np.testing.assert_allclose(dataset.split(split_name).dense[:, position], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ids", ["vocabulary", "hash64"])
def test_encoder_repeats_what_was_stored(tmp_path: Path, ids: Any) -> None:
    columns = random_rows(300, seed=7)
    source = source_of(columns, block_rows=64)
    prepare(source, tmp_path / "out", ids=ids)
    encoder = Encoder.load(tmp_path / "out")
    dataset = open_dataset(tmp_path / "out")
    done = [0, 0, 0]
    for block in source.blocks():
        encoded = encoder.encode(block.frame, block.labels)
        for code, name in enumerate(SPLITS):
            mine = np.flatnonzero(block.split == code)
            stored = dataset.split(name)
            part = slice(done[code], done[code] + len(mine))
            done[code] += len(mine)
            assert encoded.ids[mine].tolist() == stored.ids[part].tolist()
            assert np.array_equal(encoded.dense[mine], stored.dense[part])
            assert encoded.labels[mine].tolist() == stored.labels[part].tolist()
            for field in ("tags", "history", "again"):
                rows = rows_of(encoded.jagged[field])
                assert [rows[i] for i in mine] == rows_of(stored.jagged[field])[part]
    assert sum(done) == 300


def test_encoder_gives_unseen_values_id_0(tmp_path: Path) -> None:
    source = source_of(random_rows(100, seed=8))
    prepare(source, tmp_path / "out")
    encoder = Encoder.load(tmp_path / "out")
    frame = next(source.blocks()).frame.head(2)
    new = frame.with_columns(user=pl.lit("never seen"), item=pl.lit(10**15))
    assert encoder.encode(new).ids.tolist() == [[0, 0], [0, 0]]
    assert encoder.encode(frame.with_columns(item=pl.lit("text"))).ids[:, 1].tolist() == [0, 0]
    with pytest.raises(UserError, match="no field 'views'"):
        encoder.encode(frame.drop("views"))


@pytest.mark.parametrize("ids", ["vocabulary", "hash64"])
def test_integers_for_a_dataset_of_texts_are_the_texts_that_spell_them(tmp_path: Path, ids: Any) -> None:
    columns = {**random_rows(100, seed=8), "user": [str(i % 7) for i in range(100)]}
    source = source_of(columns)
    prepare(source, tmp_path / "out", ids=ids)
    encoder = Encoder.load(tmp_path / "out")
    frame = next(source.blocks()).frame
    expected = encoder.encode(frame).ids
    for kind in (pl.Int32, pl.Float64):
        assert encoder.encode(frame.with_columns(pl.col("user").cast(kind))).ids.equal(expected)
    assert encoder.encode(frame.with_columns(pl.col("item").cast(pl.String))).ids.equal(expected)


def reference_hash(value: int | str) -> int:
    """hash63 in plain integers: splitmix64's finaliser over 8-byte words."""
    mask = 2**64 - 1

    def mix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        return x ^ (x >> 31)

    if isinstance(value, int):
        return max(mix((value & mask) ^ 0x5EED0F1D5) >> 1, 1)
    text = value.encode()
    state = mix(len(text) ^ 0x5EED0F1D5 ^ 0x737472)
    for at in range(0, len(text), 8):
        state = mix(state ^ int.from_bytes(text[at : at + 8], "little"))
    return max(state >> 1, 1)


@pytest.mark.parametrize(
    "values", [[0, 1, -1, 2**62, 68719], ["", "a", "12345678", "123456789", "é" * 9, "x" * 100, "\0", "\0\0"]]
)
def test_hashes_are_those_of_the_definition(values: list[Any]) -> None:
    hashes = hash63(canonical(pl.Series(values)).to_arrow())
    assert hashes.tolist() == [reference_hash(v) for v in values]
    assert len(set(hashes.tolist())) == len(values)
    assert hashes.min() > 0
    # A slice of a longer array starts at an offset of its own.
    assert hash63(canonical(pl.Series(values)).to_arrow()[1:]).tolist() == hashes[1:].tolist()


def test_hash64_keeps_no_vocabulary(tmp_path: Path) -> None:
    columns = random_rows(100, seed=9)
    manifest = prepare(source_of(columns), tmp_path / "out", ids="hash64")
    dataset = open_dataset(tmp_path / "out")
    assert set(dataset.schema.vocabularies.values()) == {HASHED_IDS}
    assert manifest["vocabulary_bytes"] == 0
    assert not (tmp_path / "out" / "vocabularies").exists()
    assert not (tmp_path / "out" / "counts").exists()
    train = [i for i, s in enumerate(columns["split"]) if s == 0]
    users = {v: h for i, h in zip(train, dataset.split("train").ids[:, 0].tolist()) if (v := columns["user"][i])}
    assert users == {v: reference_hash(v) for v in users}
    assert min(users.values()) > 0
    assert describe(tmp_path / "out")["total_ids"] is None


def test_manifest_and_description(tmp_path: Path) -> None:
    columns = random_rows(200, seed=10)
    rejected = [Rejected("some.csv", 12, "label is not 0 or 1: 'x'", "a\tb")]
    manifest = prepare(source_of(columns, rejected=rejected), tmp_path / "out", name="mine", max_rejected=0.5)
    out = tmp_path / "out"
    assert manifest == json.loads((out / "dataset.json").read_text())
    assert manifest["rejected"] == 1
    assert (out / "rejected.tsv").read_text().splitlines()[1] == "some.csv\t12\tlabel is not 0 or 1: 'x'\ta\\tb"
    files = {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()}
    assert set(manifest["checksums"]) == files - {"dataset.json"}
    for name, checksum in manifest["checksums"].items():
        assert hashlib.blake2b((out / name).read_bytes(), digest_size=16).hexdigest() == checksum
    assert manifest["vocabulary_bytes"] == sum(f.stat().st_size for f in (out / "vocabularies").iterdir())
    facts = describe(out)
    assert facts["name"] == "mine"
    assert facts["rows"] == {s: columns["split"].count(c) for c, s in enumerate(SPLITS)}
    clicks = sum(label for label, s in zip(columns["label"], columns["split"]) if s == 1)
    assert facts["click_rate"]["valid"] == pytest.approx(clicks / facts["rows"]["valid"])
    assert [f["name"] for f in facts["fields"]] == [
        *("plain", "price", "views", "user", "item", "tags", "history", "again")
    ]
    assert facts["bytes"] == sum(f.stat().st_size for f in out.rglob("*") if f.is_file())


def test_progress_counts_every_row_twice(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    prepare(source_of(random_rows(50, seed=11)), tmp_path / "out", progress=lambda *args: seen.append(args))
    assert seen[0] == ("reading", 7, None)
    assert ("reading", 50, None) in seen
    assert seen[-1] == ("writing", 50, 50)


def test_only_overwrites_a_prepared_dataset_and_when_told(tmp_path: Path) -> None:
    columns = random_rows(60, seed=12)
    out = tmp_path / "out"
    prepare(source_of(columns), out, name="first")
    with pytest.raises(UserError, match=r"prepared dataset already.*--overwrite"):
        prepare(source_of(columns), out)
    prepare(source_of(columns), out, name="second", overwrite=True)
    assert open_dataset(out).name == "second"
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="not a prepared dataset"):
        prepare(source_of(columns), other, overwrite=True)
    assert (other / "thesis.txt").read_text() == "precious"
    blocked = tmp_path / "new.partial"
    blocked.mkdir()
    (blocked / "mine").touch()
    with pytest.raises(UserError, match=r"new\.partial is in the way"):
        prepare(source_of(columns), tmp_path / "new")
    assert (blocked / "mine").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new.partial", "other", "out"]


def test_a_failed_overwrite_keeps_the_old_dataset(tmp_path: Path) -> None:
    columns = random_rows(60, seed=12)
    prepare(source_of(columns), tmp_path / "out", name="old")
    with pytest.raises(UserError, match="test split has no rows"):
        prepare(source_of({**columns, "split": [0, 1] * 30}), tmp_path / "out", overwrite=True)
    assert open_dataset(tmp_path / "out").name == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_killed_preparation_leaves_nothing_that_looks_prepared(tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path; from tests.data.memory_source import *; from recsys_emb.data.encode import prepare\n"
        "die = lambda stage, rows, total: stage == 'writing' and os._exit(9)\n"
        "prepare(source_of(random_rows(60, seed=1)), Path(sys.argv[1]), progress=die)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out), str(Path(__file__).parents[2])], check=False)
    assert done.returncode == 9
    assert not out.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out.partial"]
    with pytest.raises(UserError, match="not a prepared dataset"):
        open_dataset(tmp_path / "out.partial")
    prepare(source_of(random_rows(60, seed=1)), out)  # clears what was left
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_preparations_of_one_folder(tmp_path: Path) -> None:
    """The second is refused while the first is at work, and the first ends as if there had been none."""
    columns, out = random_rows(60, seed=1), tmp_path / "out"
    refused: list[str] = []

    def meanwhile(stage: str, rows: int, total: int | None) -> None:
        for overwrite in (False, True):
            with pytest.raises(UserError, match="is writing this dataset; wait for it") as error:
                prepare(source_of(columns), out, overwrite=overwrite)
            refused.append(str(error.value))

    manifest = prepare(source_of(columns), out, progress=meanwhile)
    assert refused
    assert f"out.partial: another process (id {os.getpid()})" in refused[0]
    assert "\n" not in refused[0]
    alone = prepare(source_of(columns), tmp_path / "alone")
    assert manifest["checksums"] == alone["checksums"]
    assert manifest["checksums"].items() <= checksums(out).items()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "out"]


def small(labels: list[int], split: list[int], **options: Any) -> MemorySource:
    raw = RawFields(categorical=(CategoricalField(name="c", vocabulary="c"),))
    return MemorySource(raw, pl.DataFrame({"c": list(range(len(labels)))}, {"c": pl.Int64}), labels, split, **options)


@pytest.mark.parametrize(
    ("labels", "split", "message"),
    [
        ([], [], "no rows; check --input"),
        ([0, 1, 0, 1], [0, 0, 1, 1], r"test split has no rows \(rows: train 2, valid 2, test 0\)"),
        ([0, 1, 0, 0, 0, 1], [0, 0, 1, 1, 2, 2], "valid split has no clicks in 2 rows"),
        ([1, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2], "train split has only clicks in 2 rows"),
    ],
)
def test_splits_need_both_classes(tmp_path: Path, labels: list[int], split: list[int], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        prepare(small(labels, split), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


def test_too_many_rejected_rows(tmp_path: Path) -> None:
    bad = [Rejected("f.csv", n, f"reason {n}", "text") for n in range(1, 8)]
    good = ([0, 1] * 20, [0, 0, 1, 1, 2, 2, 0, 0] * 5)
    with pytest.raises(UserError) as error:
        prepare(small(*good, rejected=bad), tmp_path / "out")
    message = str(error.value)
    assert message.startswith("7 of 47 rows are malformed, more than --max-rejected 0.01: f.csv line 1: reason 1; ")
    assert "line 5: reason 5; ..." in message
    assert "line 6" not in message
    assert "\n" not in message
    kept = tmp_path / "out.rejected.tsv"
    assert str(kept) in message
    assert len(kept.read_text().splitlines()) == 8
    manifest = prepare(small(*good, rejected=bad), tmp_path / "out", max_rejected=7 / 47)
    assert manifest["rejected"] == 7
    assert not kept.exists()


def test_impossible_arguments(tmp_path: Path) -> None:
    for options, message in [
        ({"min_count": 0}, "--min-count 0"),
        ({"max_rejected": 1.5}, "--max-rejected 1.5"),
        ({"ids": "hash64", "min_count": 2}, "hash64 ids keep no counts"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare(source_of(random_rows(20, seed=1)), tmp_path / "out", **options)


def test_integers_and_texts_of_one_vocabulary_are_one_value_where_they_are_spelled_alike(tmp_path: Path) -> None:
    columns = random_rows(60, seed=13)
    prepare(source_of(columns), tmp_path / "integers")
    columns["history"] = [[f"{v}.0" if v % 2 else str(v) for v in h] for h in columns["history"]]
    prepare(source_of(columns), tmp_path / "both")
    values = {n: pl.read_ipc(tmp_path / n / "vocabularies" / "item.arrow")["value"] for n in ("integers", "both")}
    assert values["integers"].dtype.is_integer()
    assert values["both"].dtype == pl.String
    for split in SPLITS:
        read = {}
        for name, known in values.items():
            ids = open_dataset(tmp_path / name).split(split)
            ours = [ids.ids[:, 1].tolist(), ids.jagged["history"].values.tolist()]
            read[name] = [[None if v == 0 else known.cast(pl.String)[v - 1] for v in column] for column in ours]
        assert read["integers"] == read["both"]


def test_numbers_whose_spread_is_no_number_are_refused(tmp_path: Path) -> None:
    columns = random_rows(60, seed=14)
    columns["price"] = [1e300 * (i % 3) for i in range(60)]
    with pytest.raises(UserError, match="field 'price': values too large to standardise"):
        prepare(source_of(columns), tmp_path / "out")


def test_aligned_sequences_need_one_length(tmp_path: Path) -> None:
    columns = random_rows(60, seed=14)
    columns["again"][3] = [1, 2, 3] if len(columns["history"][3]) < 3 else []
    with pytest.raises(UserError, match="'again': rows differ in length from 'history'"):
        prepare(source_of(columns), tmp_path / "out")


def test_all_values_below_min_count_and_empty_lists(tmp_path: Path) -> None:
    columns = random_rows(60, seed=15)
    columns["tags"] = [[] for _ in range(60)]
    prepare(source_of(columns), tmp_path / "out", min_count=1000)
    dataset = open_dataset(tmp_path / "out")
    assert set(dataset.schema.vocabularies.values()) == {1}
    assert int(dataset.split("train").ids.max()) == 0
    assert len(dataset.split("train").jagged["tags"].values) == 0
    frame = next(source_of(columns).blocks()).frame
    assert int(Encoder.load(tmp_path / "out").encode(frame).ids.max()) == 0


@pytest.mark.parametrize("transform", ["none", "standard"])
def test_numbers_that_no_model_can_use_are_refused_in_every_split(tmp_path: Path, transform: Any) -> None:
    raw = RawFields(dense=(DenseColumn("x", transform),), categorical=(CategoricalField(name="c", vocabulary="c"),))
    frame = pl.DataFrame({"x": [1.0, 2.0] * 8 + [1e300], "c": [1] * 17})
    source = MemorySource(raw, frame, [0, 1] * 8 + [0], [0] * 8 + [1] * 4 + [2] * 5)
    with pytest.raises(UserError, match="field 'x': values too large to train with"):
        prepare(source, tmp_path / "out")


# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.0] * 8 + [1.0] * 8, "the train split: all rows have weight 0"),
        ([0.0, 1.0] * 8, "the train split: all rows without a click have weight 0"),
        ([1.0, 0.0] * 8, "the train split: all clicks have weight 0"),
        ([1e-50] * 8 + [1.0] * 8, "the train split: all rows have weight 0"),  # float32 has no such number
        ([1.0] * 12 + [0.0] * 4, "the test split: all rows have weight 0"),
    ],
)
def test_a_split_whose_weights_leave_out_a_class_is_refused(tmp_path: Path, weights: list[float], message: str) -> None:
    raw = RawFields(categorical=(CategoricalField(name="c", vocabulary="c"),), weighted=True)
    split = [0] * 8 + [1] * 4 + [2] * 4
    source = MemorySource(raw, pl.DataFrame({"c": [1] * 16}), [0, 1] * 8, split, weights)
    with pytest.raises(UserError, match=f"^{message}, so nothing is learnt or measured of them; check weight$"):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_some_weights_may_be_zero(tmp_path: Path) -> None:
    raw = RawFields(categorical=(CategoricalField(name="c", vocabulary="c"),), weighted=True)
    split = [0] * 8 + [1] * 4 + [2] * 4
    prepare(
        MemorySource(raw, pl.DataFrame({"c": [1] * 16}), [0, 1] * 8, split, [0.0, 0.0, 2.0, 1.0] * 4), tmp_path / "out"
    )
    weights = open_dataset(tmp_path / "out").split("valid").weights
    assert weights is not None
    assert weights.tolist() == [0, 0, 2, 1]
