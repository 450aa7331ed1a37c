"""Rows prepared like another dataset: its ids and scales, whatever they hold; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from recsys_emb.config import parse_config
from recsys_emb.data.cli import app
from recsys_emb.data.encode import prepare
from recsys_emb.data.encoder import Encoder
from recsys_emb.data.ids import Ids
from recsys_emb.data.like import open_reference
from recsys_emb.data.options import make_source
from recsys_emb.data.store import EncodedDataset, open_dataset
from recsys_emb.errors import UserError
from recsys_emb.training.run import plan

OPTIONS: dict[str, Any] = {
    "label": "y",
    "dense": [{"name": "x", "transform": "log1p"}],
    "categorical": ["user", "item"],
    "multi_valued": [{"name": "tags", "separator": "|"}],
    "sequences": [{"name": "seen", "target": "item", "separator": " ", "max_length": 2}],
    "user": "user",
}


def write(path: Path, rows: int, first: int = 0) -> Path:
    lines = [
        f"{i % 2},{'' if i % 9 == 0 else i},u{i % 11},i{i % 7},t{i % 3}|t{i % 5},i{i % 4} i{i % 6} i{i % 7}"
        for i in range(first, first + rows)
    ]
    path.write_text("\n".join(["y,x,user,item,tags,seen", *lines]) + "\n")
    return path


def made(folder: Path, name: str, input: Path, options: dict[str, Any] = OPTIONS, **arguments: Any) -> EncodedDataset:
    prepare(make_source("table", input, options=options), folder / name, **arguments)
    return open_dataset(folder / name)


def arrays(dataset: EncodedDataset, split: str) -> list[Any]:
    s = dataset.split(split)
    lists = [array.tolist() for name in sorted(s.jagged) for array in (s.jagged[name].values, s.jagged[name].offsets)]
    return [s.labels.tolist(), s.dense.tolist(), s.ids.tolist(), *lists]


@pytest.mark.parametrize("ids", ["vocabulary", "hash64"])
def test_the_same_rows_get_the_same_arrays(tmp_path: Path, ids: Ids) -> None:
    input = write(tmp_path / "a.csv", 400)
    old = made(tmp_path, "old", input, ids=ids)
    again = made(tmp_path, "again", input, like=open_reference(tmp_path / "old"))
    for split in ("train", "valid", "test"):
        assert arrays(again, split) == arrays(old, split)
    assert old.encoding.difference(again.encoding) is None
    assert again.manifest["oov_rate"] == old.manifest["oov_rate"]
    if ids == "vocabulary":
        for vocabulary in old.schema.vocabularies:
            assert again.counts(vocabulary).tolist() == old.counts(vocabulary).tolist()


def test_new_rows_are_encoded_as_the_encoder_does(tmp_path: Path) -> None:
    """Half of the users and items are new; all rows are test, so that no row is counted."""
    made(tmp_path, "old", write(tmp_path / "a.csv", 100))
    lines = write(tmp_path / "b.csv", 50, first=1000).read_text().replace("u3,", "new,").replace("i5,", "fresh,")
    (tmp_path / "b.csv").write_text(lines)
    options = {**OPTIONS, "split": "test"}
    new = made(tmp_path, "new", tmp_path / "b.csv", options, like=open_reference(tmp_path / "old"))
    assert new.manifest["rows"] == {"train": 0, "valid": 0, "test": 50}
    (block,) = make_source("table", tmp_path / "b.csv", options=options).blocks()
    encoded = Encoder.load(tmp_path / "old").encode(block.frame)
    test = new.split("test")
    assert test.ids.tolist() == encoded.ids.tolist()
    assert test.dense.tolist() == encoded.dense.tolist()
    assert test.jagged["seen"].values.tolist() == encoded.jagged["seen"].values.tolist()
    assert 0 < np.mean(test.ids[:, 0].numpy() == 0) < 0.2
    assert new.counts("user").sum() == 0


def test_a_folder_that_rows_cannot_be_like(tmp_path: Path) -> None:
    input = write(tmp_path / "a.csv", 200)
    made(tmp_path, "old", input)
    like = open_reference(tmp_path / "old")
    for change, message in (
        ({"categorical": ["item", "user", "y2"]}, "it has a field 'y2' too many"),
        ({"dense": []}, r"it has no field 'x' \(dense \(log1p\)\)"),
        ({"dense": ["x"]}, r"field 'x' is dense \(standard\), not dense \(log1p\)"),
        (
            {"sequences": [{**OPTIONS["sequences"][0], "max_length": 3}]},
            "field 'seen' is .*at most 3, not .* 2",
        ),
        ({"user": None}, "user is absent, not user"),
        ({"weight": "x"}, "rows have weights"),
    ):
        with pytest.raises(UserError, match=f"--like .*old: {message}") as error:
            made(tmp_path, "new", input, {**OPTIONS, **change}, like=like)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="leave out --min-count and --ids"):
        made(tmp_path, "new", input, like=like, min_count=2)
    with pytest.raises(UserError, match="leave out --min-count and --ids"):
        made(tmp_path, "new", input, like=like, ids="hash64")
    with pytest.raises(UserError, match="neither a prepared dataset nor an artifact"):
        open_reference(tmp_path)
    (tmp_path / "old/vocabularies/user.arrow").write_bytes(b"x")
    with pytest.raises(UserError, match=r"user\.arrow is missing or damaged"):
        made(tmp_path, "new", input, like=like)
    assert not list(tmp_path.glob("new*"))


def test_other_order_of_fields_is_put_right(tmp_path: Path) -> None:
    input = write(tmp_path / "a.csv", 200)
    old = made(tmp_path, "old", input)
    other = {**OPTIONS, "categorical": ["item", "user"]}
    new = made(tmp_path, "new", input, other, like=open_reference(tmp_path / "old"))
    assert arrays(new, "test") == arrays(old, "test")
    assert old.encoding.difference(made(tmp_path, "else", input, other).encoding) == "its fields are in another order"


def test_what_differs_is_named(tmp_path: Path) -> None:
    old = made(tmp_path, "old", write(tmp_path / "a.csv", 200))
    text = (tmp_path / "a.csv").read_text()
    for change, message in (
        (("u3,", "other,"), "vocabulary 'user' holds other values"),
        (("u3,", "u4,"), "vocabulary 'user' has 11 ids, not 12"),
        ((",10,", ",1000,"), "dense field 'x' is scaled by other statistics"),
    ):
        (tmp_path / "b.csv").write_text(text.replace(*change))
        other = made(tmp_path, "other", tmp_path / "b.csv", overwrite=True)
        assert old.encoding.difference(other.encoding) == message


def test_options_come_from_the_reference_as_typed(tmp_path: Path) -> None:
    made(tmp_path, "old", write(tmp_path / "a.csv", 200))
    arguments = ["prepare", "table", "--like", tmp_path / "old", "--input", write(tmp_path / "b.csv", 20, 300)]
    arguments += ["--out", tmp_path / "new", "--option", "split=test", "--json"]
    done = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    manifest = json.loads(done.output)
    assert manifest["rows"]["test"] == 20
    assert manifest["like"] == str(tmp_path / "old")
    assert manifest["options"]["label"]["column"] == "y"
    assert manifest["options"]["split"]["all"] == "test"


def test_a_dataset_without_training_rows_is_not_trained_on(tmp_path: Path) -> None:
    made(tmp_path, "old", write(tmp_path / "a.csv", 200))
    tomorrow = {**OPTIONS, "split": "test"}
    new = made(tmp_path, "new", tmp_path / "a.csv", tomorrow, like=open_reference(tmp_path / "old"))
    config = parse_config({"data": {"path": str(new.path)}, "model": {"name": "lr"}})
    with pytest.raises(UserError, match=r"data.path .*new: the train split has no rows; it can only be evaluated"):
        plan(config, new)
