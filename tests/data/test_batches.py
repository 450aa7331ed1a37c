"""Batches against the stored rows, taken one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys_emb.data.batches import Batch, BatchLoader, row_order
from recsys_emb.data.encode import prepare
from recsys_emb.data.store import EncodedDataset, open_dataset
from tests.data.memory_source import random_rows, source_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> EncodedDataset:
    out = tmp_path_factory.mktemp("batches") / "out"
    prepare(source_of(random_rows(300, seed=3)), out)
    return open_dataset(Path(out))


def loader(dataset: EncodedDataset, size: int = 32, **options: int | bool) -> BatchLoader:
    return BatchLoader(dataset.split("train"), dataset.schema, size, **options)  # type: ignore[arg-type]


def check(batch: Batch, dataset: EncodedDataset, rows: list[int]) -> None:
    """Every part of a batch against the stored arrays, row by row."""
    split = dataset.split("train")
    assert len(batch) == len(rows)
    assert batch.labels.dtype == torch.float32
    assert batch.labels.tolist() == [float(split.labels[r]) for r in rows]
    assert torch.equal(batch.dense, torch.stack([split.dense[r] for r in rows]))
    assert batch.weights is not None
    assert split.weights is not None
    assert batch.weights.tolist() == [float(split.weights[r]) for r in rows]
    assert batch.sparse.keys() == ["user", "item", "tags"]
    assert batch.sparse.values().dtype == torch.int64
    assert batch.sparse["user"].values().tolist() == [int(split.ids[r, 0]) for r in rows]
    assert batch.sparse["item"].values().tolist() == [int(split.ids[r, 1]) for r in rows]
    assert batch.sparse["item"].lengths().tolist() == [1] * len(rows)
    assert batch.groups is not None
    assert batch.groups.tolist() == batch.sparse["user"].values().tolist()
    assert batch.sequences is not None
    assert batch.sequences.keys() == ["history", "again"]
    for kjt, field in ((batch.sparse, "tags"), (batch.sequences, "history"), (batch.sequences, "again")):
        jagged = split.jagged[field]
        expected = [jagged.values[jagged.offsets[r] : jagged.offsets[r + 1]].tolist() for r in rows]
        assert [v.tolist() for v in kjt[field].to_dense()] == expected


def row_numbers(split_rows: int, size: int, seed: int, epoch: int) -> list[list[int]]:
    order = torch.cat(list(row_order(split_rows, seed=seed, epoch=epoch))).tolist()
    return [order[i : i + size] for i in range(0, split_rows, size)]


def test_stored_order(dataset: EncodedDataset) -> None:
    rows = len(dataset.split("train"))
    batches = list(loader(dataset))
    assert len(batches) == len(loader(dataset)) == (rows + 31) // 32
    for i, batch in enumerate(batches):
        check(batch, dataset, list(range(rows))[i * 32 : (i + 1) * 32])


@pytest.mark.parametrize("ranks", [1, 3])
def test_rows_of_several_processes_are_put_back_in_order(dataset: EncodedDataset, ranks: int) -> None:
    loaders = [loader(dataset, rank=rank, ranks=ranks) for rank in range(ranks)]
    ids = torch.cat([batch.sparse["item"].values() for each in loaders for batch in each])
    rows = loaders[0].gathered_rows()
    assert ids.tolist() == dataset.split("train").ids[rows, 1].tolist()
    assert sorted(rows.tolist()) == list(range(len(dataset.split("train"))))


def test_shuffled_batches_hold_the_rows_of_their_order(dataset: EncodedDataset) -> None:
    expected = row_numbers(len(dataset.split("train")), 32, seed=5, epoch=2)
    batches = list(loader(dataset, shuffle=True, seed=5).epoch(2))
    assert len(batches) == len(expected)
    for batch, rows in zip(batches, expected):
        check(batch, dataset, rows)


@pytest.mark.parametrize("rows", [0, 1, 10, 1000, 64 * 10 * 3 + 7])
def test_every_row_once(rows: int) -> None:
    order = torch.cat([torch.empty(0, dtype=torch.int64), *row_order(rows, seed=1, epoch=0, block_rows=10)])
    assert sorted(order.tolist()) == list(range(rows))
    if rows >= 1000:
        assert order.tolist() != list(range(rows))


def test_order_is_fixed_by_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return torch.cat(list(row_order(500, seed=seed, epoch=epoch))).tolist()

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(s, e)) for s in (1, 2) for e in (0, 1, 2)}) == 6


def test_a_resumed_epoch_goes_on_where_it_stopped(dataset: EncodedDataset) -> None:
    shuffled = loader(dataset, shuffle=True, seed=4)
    whole = list(shuffled.epoch(1))
    for start in (0, 3, len(whole) - 1, len(whole)):
        rest = list(shuffled.epoch(1, start=start))
        assert len(rest) == len(whole) - start
        for a, b in zip(rest, whole[start:]):
            assert torch.equal(a.dense, b.dense)
            assert torch.equal(a.sparse.values(), b.sparse.values())
            assert torch.equal(a.labels, b.labels)


def test_batches_do_not_share_memory_with_the_files(dataset: EncodedDataset) -> None:
    first = next(iter(loader(dataset)))
    kept = first.dense.clone()
    first.dense.zero_()
    assert torch.equal(next(iter(loader(dataset))).dense, kept)
