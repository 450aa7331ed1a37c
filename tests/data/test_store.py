"""The folder format: what is written comes back, and damage is told in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_emb.data.encode import prepare
from recsys_emb.data.split import Jagged, Split, concatenated
from recsys_emb.data.store import NpyWriter, open_dataset
from recsys_emb.errors import UserError
from tests.data.memory_source import random_rows, source_of


@pytest.mark.parametrize(("dtype", "columns"), [(np.float32, 3), (np.int32, 0), (np.int64, None), (np.uint8, None)])
def test_npy_writer_writes_what_numpy_reads(tmp_path: Path, dtype: type, columns: int | None) -> None:
    blocks = [np.arange(n * (columns or 1)).reshape(n if columns is None else (n, -1)) for n in (2, 5)]
    if columns == 0:
        blocks = [np.zeros((2, 0)), np.zeros((5, 0))]
    writer = NpyWriter(tmp_path / "a.npy", dtype, columns)
    for block in blocks:
        writer.append(block)
    writer.close()
    read = np.load(tmp_path / "a.npy")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, np.concatenate(blocks))
    assert writer.rows == 7


def test_npy_writer_refuses_blocks_of_another_width(tmp_path: Path) -> None:
    writer = NpyWriter(tmp_path / "a.npy", np.float32, 3)
    with pytest.raises(ValueError, match="shape"):
        writer.append(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="shape"):
        writer.append(np.zeros(3))
    writer.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare(source_of(random_rows(60, seed=1)), tmp_path / "out")
    return tmp_path / "out"


def test_split_has_the_documented_types(folder: Path) -> None:
    split = open_dataset(folder).split("valid")
    n = len(split)
    assert (split.labels.dtype, split.labels.shape) == (torch.uint8, (n,))
    assert split.weights is not None
    assert (split.weights.dtype, split.weights.shape) == (torch.float32, (n,))
    assert (split.dense.dtype, split.dense.shape) == (torch.float32, (n, 3))
    assert (split.ids.dtype, split.ids.shape) == (torch.int32, (n, 2))
    assert set(split.jagged) == {"tags", "history", "again"}
    assert (split.jagged["tags"].offsets.dtype, split.jagged["tags"].offsets.shape) == (torch.int64, (n + 1,))


def test_reading_never_changes_the_files(folder: Path) -> None:
    before = (folder / "train" / "ids.npy").read_bytes()
    split = open_dataset(folder).split("train")
    split.ids.fill_(7)
    assert (folder / "train" / "ids.npy").read_bytes() == before


def test_errors_name_the_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a prepared dataset"):
        open_dataset(tmp_path)
    dataset = open_dataset(folder)
    with pytest.raises(UserError, match="unknown split 'dev'; allowed: train, valid, test"):
        dataset.split("dev")
    (folder / "train" / "dense.npy").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"dense\.npy: .*prepare"):
        dataset.split("train")
    (folder / "valid" / "labels.npy").unlink()
    with pytest.raises(UserError, match=r"labels\.npy: cannot be read"):
        dataset.split("valid")


def test_a_truncated_array_is_noticed(folder: Path) -> None:
    path = folder / "train" / "ids.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match=r"ids\.npy: damaged array"):
        open_dataset(folder).split("train")


def test_other_format_versions_are_refused(folder: Path) -> None:
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(UserError, match="format 99"):
        open_dataset(folder)
    (folder / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        open_dataset(folder)


def test_a_damaged_schema_is_one_line(folder: Path) -> None:
    schema = json.loads((folder / "schema.json").read_text())
    (folder / "schema.json").write_text(json.dumps({**schema, "user": "nobody"}))
    with pytest.raises(UserError, match=r"schema\.json") as error:
        open_dataset(folder)
    assert "\n" not in str(error.value)


def test_aligned_sequences_keep_as_many_entries(folder: Path) -> None:
    tree = json.loads((folder / "schema.json").read_text())
    tree["sequences"][1]["max_length"] += 1
    (folder / "schema.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="sequence 'again': max_length is not that of 'history'"):
        open_dataset(folder)


def test_a_folder_of_the_format_before_is_refused_in_one_line(folder: Path) -> None:
    """There 3 and 3.0 were two values."""
    manifest = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**manifest, "format_version": 1}))
    with pytest.raises(UserError, match=r"was prepared as format 1, this version reads 2; prepare it again"):
        open_dataset(folder)


def test_splits_one_after_another_are_the_rows_of_all() -> None:
    def split(rows: list[list[int]]) -> Split:
        """Each row's number as its id, and its tags."""
        tags = Jagged(
            torch.tensor([v for row in rows for v in row], dtype=torch.int32),
            torch.tensor(np.cumsum([0, *map(len, rows)])),
        )
        ids = torch.tensor([[len(row)] for row in rows], dtype=torch.int32).view(-1, 1)
        return Split("input", torch.zeros(len(rows), dtype=torch.uint8), None, ids.float(), ids, {"tags": tags})

    parts = [[[4, 5], [], [6]], [], [[7, 8, 9]], [[]]]
    joined, expected = concatenated([split(part) for part in parts]), split([row for part in parts for row in part])
    assert len(joined) == 5
    assert torch.equal(joined.ids, expected.ids)
    assert torch.equal(joined.dense, expected.dense)
    assert torch.equal(joined.jagged["tags"].values, expected.jagged["tags"].values)
    assert torch.equal(joined.jagged["tags"].offsets, expected.jagged["tags"].offsets)
