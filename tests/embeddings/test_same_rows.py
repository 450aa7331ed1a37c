"""Ids with the same served row, against comparing every pair of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys_emb.embeddings import same_rows as module
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.same_rows import same_rows


def full_tables(rows: list[torch.Tensor]) -> EmbeddingBackend:
    spec = GroupSpec(tuple(TableSpec(f"t{i}", len(r)) for i, r in enumerate(rows)), rows[0].shape[1])
    backend, config = plan_backend("full", spec)
    made = backend(spec, config)
    with torch.no_grad():
        for table, given in enumerate(rows):
            made.plain_rows(table).copy_(given)
    return made


def repeated_rows(n: int, different: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(different, 5, generator=random)[torch.randint(0, different, (n,), generator=random)]


def test_the_least_id_with_the_same_row() -> None:
    rows = [repeated_rows(40, 7, 1), repeated_rows(300, 200, 2), torch.zeros(3, 5)]
    backend = full_tables(rows)
    for table, own in enumerate(rows):
        least = [next(i for i in range(len(own)) if torch.equal(own[i], row)) for row in own]
        assert same_rows(backend, table).tolist() == least


def test_rows_that_only_their_hashes_take_for_equal_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = repeated_rows(30, 5, 3)
    monkeypatch.setattr(module, "_hashes", lambda words: (words[:, 0] % 2).astype(np.uint64))
    same = same_rows(full_tables([rows]), 0)
    assert torch.equal(rows[torch.from_numpy(same)], rows)


def test_one_column_more_or_less_is_another_row() -> None:
    rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1e-30], [-1.0, 0.0]])
    assert same_rows(full_tables([rows]), 0).tolist() == [0, 1, 0, 3, 4]
