"""Rows appended to a prepared folder: ids go on, earlier states stay, and what cannot be appended changes nothing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from recsys_emb.data import growth
from recsys_emb.data.append import append
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.cli import app
from recsys_emb.data.describe import describe
from recsys_emb.data.encode import prepare
from recsys_emb.data.encoder import Encoder
from recsys_emb.data.folder import checksums
from recsys_emb.data.growth import GrownVocabulary
from recsys_emb.data.ids import Ids
from recsys_emb.data.like import open_reference
from recsys_emb.data.options import make_source
from recsys_emb.data.parts import place, state_names
from recsys_emb.data.store import SPLITS, EncodedDataset, open_dataset
from recsys_emb.data.vocabulary import ValueSpool, read_values, write_vocabulary
from recsys_emb.errors import UserError
from recsys_emb.lock import sole_writer

OPTIONS: dict[str, Any] = {
    "label": "y",
    "dense": [{"name": "x", "transform": "standard"}],
    "categorical": ["user", "item"],
    "multi_valued": [{"name": "tags", "separator": "|"}],
    "sequences": [{"name": "seen", "target": "item", "separator": " ", "max_length": 2}],
    "user": "user",
    "weight": "w",
}
HEADER = "y,x,w,user,item,tags,seen"


def day(number: int, rows: int = 60) -> list[str]:
    """Rows of a day: users move on by five a day, items by three, and every fifth row has no tags and saw nothing."""
    lines = []
    for i in range(rows):
        item = 3 * number + i % 9
        lists = "," if i % 5 == 0 else f"t{number}|t{i % 4},{item} {item + 1}"
        lines.append(f"{i % 3 // 2},{i + number},{1 + i % 2},u{5 * number + i % 11},{item},{lists}")
    return lines


def write(path: Path, lines: list[str], header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


@pytest.fixture(scope="module", params=["vocabulary", "hash64"])
def days(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 200 rows to which the days 1 to 3 were appended. Never written to."""
    folder = tmp_path_factory.mktemp("days")
    ids: Ids = request.param
    first = write(folder / "first.csv", day(0, 200))
    prepare(make_source("table", first, options=OPTIONS), folder / "data", ids=ids)
    for number in (1, 2, 3):
        append(folder / "data", write(folder / f"day-{number}.csv", day(number)))
    return folder / "data"


def gathered(dataset: EncodedDataset, split: str, shuffle: bool = False) -> list[list[Any]]:
    """A row each: label, weight, dense value, ids."""
    rows = []
    for batch in BatchLoader(dataset.split(split), dataset.schema, 37, shuffle=shuffle, seed=1):
        assert batch.weights is not None
        assert batch.sequences is not None
        tags, seen = batch.sparse["tags"].to_dense(), batch.sequences["seen"].to_dense()
        singles = zip(batch.sparse["user"].values().tolist(), batch.sparse["item"].values().tolist())
        dense = batch.dense.squeeze(1).tolist()
        columns = (batch.labels.tolist(), batch.weights.tolist(), dense, singles, tags, seen)
        rows += [[y, w, x, *ui, t.tolist(), s.tolist()] for y, w, x, ui, t, s in zip(*columns)]
    return rows


def encoded(dataset: EncodedDataset, lines: list[str], folder: Path) -> list[list[Any]]:
    """The same of raw rows, by the encoder for single rows that come after preparation, with a state's vocabularies."""
    source = make_source("table", write(folder / "rows.csv", lines), options=OPTIONS)
    encoder, rows = Encoder.load(dataset.path, dataset.state), []
    for block in source.blocks():
        s = encoder.encode(block.frame, block.labels)
        assert block.weights is not None
        bounds = [s.jagged[name].offsets.tolist() for name in ("tags", "seen")]
        for i in range(len(s)):
            lists = [s.jagged[n].values[b[i] : b[i + 1]].tolist() for n, b in zip(("tags", "seen"), bounds)]
            rows.append([float(s.labels[i]), float(block.weights[i]), float(s.dense[i]), *s.ids[i].tolist(), *lists])
    return rows


# -- ids --------------------------------------------------------------------------------------------------------------


def test_states_are_read_as_the_encoder_encodes(days: Path, tmp_path: Path) -> None:
    assert state_names(days) == ["base", "day-1", "day-2", "day-3"]
    for last, state in enumerate(state_names(days)):
        dataset = open_dataset(days, state)
        new = [line for number in range(1, last + 1) for line in day(number)]
        train = gathered(dataset, "train")
        assert train[len(train) - len(new) :] == encoded(dataset, new, tmp_path)
        assert train[: len(train) - len(new)] == gathered(open_dataset(days, "base"), "train")
        for split in ("valid", "test"):
            assert gathered(dataset, split) == gathered(open_dataset(days, "base"), split)


def test_shuffled_batches_hold_the_same_rows(days: Path) -> None:
    dataset = open_dataset(days)
    stored, shuffled = gathered(dataset, "train"), gathered(dataset, "train", shuffle=True)
    assert stored != shuffled
    assert sorted(map(str, stored)) == sorted(map(str, shuffled))


def test_known_values_keep_their_ids_and_counts_go_on(days: Path) -> None:
    states = [open_dataset(days, state) for state in state_names(days)]
    if states[0].schema.ids == "hash64":
        assert states[0].schema == states[-1].schema
        assert not states[-1].stats()
        return
    for before, after, number in zip(states, states[1:], (1, 2, 3)):
        for name in ("user", "item", "tags"):
            known, now = (
                read_values(s.folder / f"vocabularies/{name}.arrow", s.schema.vocabularies[name]).to_list()
                for s in (before, after)
            )
            assert now[: len(known)] == known
            assert len(set(now)) == len(now)
        users = Counter(line.split(",")[3] for line in day(number))
        old, new = (s.counts("user") for s in (before, after))
        values = read_values(after.folder / "vocabularies/user.arrow", len(new)).to_list()
        assert new[1:].tolist() == [(old[i + 1] if i + 1 < len(old) else 0) + users[v] for i, v in enumerate(values)]
        assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("known", "blocks", "values", "ids"),
    [
        ([7, None], [[7, 9], [9, 8]], [7, None, 9, 8], [[1, 3], [3, 4]]),
        ([7], [["7", "x"], [None, 5]], ["7", None, "5", "x"], [[1, 4], [2, 3]]),
        ([7], [["8", None]], [7, None, 8], [[3, 2]]),
        (["7", "b"], [[7, 9]], ["7", "b", "9"], [[1, 3]]),
        ([], [["a"]], ["a"], [[1]]),
    ],
)
def test_integers_and_texts_are_one_value(
    tmp_path: Path, known: list[Any], blocks: list[list[Any]], values: list[Any], ids: list[list[int]]
) -> None:
    """New values in the order of falling count, ties by value, null first: worked out by hand."""
    write_vocabulary(tmp_path / "v.arrow", pa.array(known, pa.large_string() if "b" in known else pa.int64()))
    spool = ValueSpool("v", tmp_path)
    for block in blocks:
        kind = pa.large_string() if any(isinstance(v, str) for v in block) else pa.int64()
        spool.append(pa.array(block, kind), np.ones(len(block), np.int64))
    grown = GrownVocabulary(tmp_path / "v.arrow", np.zeros(len(known) + 1, np.int64), spool, tmp_path, 1, 1.0)
    assert grown.values.to_pylist() == values
    assert [block.tolist() for block in grown.block_ids()] == ids


def test_rare_values_and_decayed_counts(tmp_path: Path) -> None:
    write_vocabulary(tmp_path / "v.arrow", pa.array(["a", "b"], pa.large_string()))
    spool = ValueSpool("v", tmp_path)
    spool.append(pa.array(["a", "c", "d"], pa.large_string()), np.array([1, 1, 1]))
    spool.append(pa.array(["c"], pa.large_string()), np.array([1]))
    grown = GrownVocabulary(tmp_path / "v.arrow", np.array([4, 10, 7]), spool, tmp_path, 2, 0.5)
    assert grown.values.to_pylist() == ["a", "b", "c"]
    assert grown.counts.tolist() == [4 / 2 + 1, 10 / 2 + 1, 4, 2]  # 7 / 2 to the even number; d is rare
    assert [block.tolist() for block in grown.block_ids()] == [[1, 3, 0], [3]]


def test_new_rows_can_be_prepared_like_an_earlier_state(days: Path, tmp_path: Path) -> None:
    input = write(tmp_path / "new.csv", day(3))
    source = make_source("table", input, options=OPTIONS)
    prepare(source, tmp_path / "like", like=open_reference(days / "parts/day-2"))
    assert open_dataset(tmp_path / "like").fingerprint == open_dataset(days, "day-2").fingerprint


# -- the split by part ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "last"), [("base", 0), ("day-1", 1), (None, 1)])
def test_a_split_by_part(days: Path, tmp_path: Path, state: str | None, last: int) -> None:
    dataset = open_dataset(days, state, "parts")
    assert dataset.state == state_names(days)[last]
    train = gathered(dataset, "train")
    assert len(train) == 200 + 60 * last
    first = gathered(open_dataset(days, "base"), "train")
    assert train[: len(first)] == first
    # Ids that come later than the state are unknown to it.
    assert gathered(dataset, "valid") == encoded(dataset, day(last + 1), tmp_path)
    assert gathered(dataset, "test") == encoded(dataset, day(last + 2), tmp_path)


def test_recent_parts_alone(days: Path) -> None:
    whole, recent = open_dataset(days), open_dataset(days, recent=2)
    assert gathered(recent, "train") == gathered(whole, "train")[-120:]
    assert gathered(recent, "valid") == gathered(whole, "valid")
    assert gathered(open_dataset(days, recent=9), "train") == gathered(whole, "train")


def test_shares_of_unknown_values(days: Path, tmp_path: Path) -> None:
    dataset = open_dataset(days, "base", "parts")
    shares = dataset.unknown_share("test")
    if dataset.schema.ids == "hash64":
        assert shares is None
        return
    rows = encoded(dataset, day(2), tmp_path)
    lists = {"user": [r[3] for r in rows], "item": [r[4] for r in rows]}
    lists |= {"tags": [v for r in rows for v in r[5]], "seen": [v for r in rows for v in r[6]]}
    assert shares == pytest.approx({name: ids.count(0) / len(ids) for name, ids in lists.items()})
    assert 0 < shares["user"] < 1


def test_states_that_there_are_not(days: Path) -> None:
    with pytest.raises(UserError, match=r"data\.state day-9: .* no such state; it has base, day-1, day-2, day-3$"):
        open_dataset(days, "day-9")
    with pytest.raises(UserError, match=r"data\.split parts: needs two parts of .* after day-2, to validate"):
        open_dataset(days, "day-2", "parts")


def test_describe_tells_the_states(days: Path) -> None:
    facts = describe(days)
    assert [(s["name"], s["rows"]) for s in facts["states"]] == [
        ("base", 200),
        ("day-1", 60),
        ("day-2", 60),
        ("day-3", 60),
    ]
    base = describe(days)["rows"]
    assert base["train"] == 180 + 200 - base["valid"] - base["test"]
    assert sum(facts["rows"][s] * facts["click_rate"][s] for s in SPLITS) == pytest.approx(200 // 3 + 3 * 20)


# -- what cannot be appended ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """200 rows and one day."""
    prepare(make_source("table", write(tmp_path / "first.csv", day(0, 200)), options=OPTIONS), tmp_path / "data")
    append(tmp_path / "data", write(tmp_path / "day-09.csv", day(9)))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("lines", "header", "name", "message"),
    [
        (day(9), HEADER, "day-09", "--name day-09: .* has that part already"),
        (day(9), HEADER, "day-10", "part day-10: these are the rows of day-09, which .* has already"),
        (day(8), HEADER, "day-8", "--name day-8: comes before day-09, the last part of .*in order"),
        (day(8), HEADER, "../x", "--name '../x': no name of a part"),
        (day(8), HEADER, "base", "--name 'base': no name of a part"),
        (["1,2,3"], "y,x,w", "day-10", "no column 'user', which field 'user' needs"),
        ([line.replace(",", ";") for line in day(8)], HEADER.replace(",", ";"), "day-10", "no column 'x'"),
        ([f"1{line[1:]}" for line in day(8)], HEADER, "day-10", "part day-10: only clicks in 60 rows"),
        ([f"0{line[1:]}" for line in day(8)], HEADER, "day-10", "part day-10: no clicks in 60 rows"),
        ([line.replace("u", "u,", 1) for line in day(8)], HEADER, "day-10", "60 of 60 rows so far are malformed"),
        ([], HEADER, "day-10", "no rows|empty"),
    ],
)
def test_bad_parts_change_nothing(
    folder: Path, tmp_path: Path, lines: list[str], header: str, name: str, message: str
) -> None:
    before = checksums(folder)
    with pytest.raises(UserError, match=message) as error:
        append(folder, write(tmp_path / "new.csv", lines, header), name=name)
    assert "\n" not in str(error.value)
    assert checksums(folder) == before


def test_the_first_rows_are_not_appended_again(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "first.csv", tmp_path / "copy/first.csv")
    with pytest.raises(UserError, match="part x: these are the rows of base"):
        append(folder, tmp_path / "copy/first.csv", name="x")


def test_too_many_ids(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "MOST_IDS", 20)
    with pytest.raises(UserError, match=r"vocabulary '\w+' would have \d+ ids, more than 20; raise --min-count"):
        append(folder, write(tmp_path / "day-10.csv", day(40)))
    assert state_names(folder) == ["base", "day-09"]


def test_two_at_a_time(folder: Path, tmp_path: Path) -> None:
    with (
        sole_writer(folder / "parts", "a part of this dataset"),
        pytest.raises(UserError, match=r"another process .* is writing a part of this dataset"),
    ):
        append(folder, write(tmp_path / "day-10.csv", day(10)))
    assert append(folder, tmp_path / "day-10.csv")["part"]["after"] == "day-09"


def test_what_a_killed_append_left_is_no_part(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "parts/day-09", folder / "parts/day-10.partial")
    assert state_names(folder) == ["base", "day-09"]
    append(folder, write(tmp_path / "day-11.csv", day(11)))
    assert state_names(folder) == ["base", "day-09", "day-11"]
    assert not (folder / "parts/day-10.partial").exists()


def test_numbers_in_names_count_as_numbers() -> None:
    names = ["a", "day-9", "day-10", "2026-11-26", "2026-2-1", "2026-11-3"]
    assert sorted(names, key=place) == ["2026-2-1", "2026-11-3", "2026-11-26", "a", "day-9", "day-10"]


def test_the_command(folder: Path, tmp_path: Path) -> None:
    input = write(tmp_path / "new.csv", day(10))
    typed = ["append", folder, "--input", input, "--name", "day-10", "--min-count", 3, "--decay", 0.5, "--json"]
    result = CliRunner().invoke(app, list(map(str, typed)), catch_exceptions=False)
    made = json.loads(result.stdout)
    assert made["part"] == {"name": "day-10", "after": "day-09", "decay": 0.5}
    assert made["min_count"] == 3
    assert made["rows"] == {"train": 60, "valid": 0, "test": 0}
