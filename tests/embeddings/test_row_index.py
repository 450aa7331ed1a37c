"""The index of kept ids against a plain dictionary."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_emb.embeddings.row_index import RowIndex, index_bytes, kind_of, popcount


def filled(ids: int, kept: list[int]) -> RowIndex:
    index = RowIndex(ids, len(kept))
    index.fill(torch.tensor(kept, dtype=torch.int64))
    return index


@given(st.data())
def test_every_id_gets_its_rank_or_none(data: st.DataObject) -> None:
    ids = data.draw(st.integers(1, 400))
    kept = sorted(data.draw(st.sets(st.integers(0, ids - 1))))
    index = filled(ids, kept)
    rank = {i: r for r, i in enumerate(kept)}
    rows, found = index(torch.arange(ids))
    assert rows.tolist() == [rank.get(i, 0) for i in range(ids)]
    assert (found is None and len(kept) == ids) or found.tolist() == [i in rank for i in range(ids)]
    assert index.kept().tolist() == kept
    assert sum(b.nbytes for b in index.buffers()) == index_bytes(ids, len(kept))


@pytest.mark.parametrize(("ids", "rows", "kind", "size"), [
    (1000, 1000, "all", 0),
    (6400, 3000, "bitmap", 1200),  # 100 words of 8 bytes, 100 ranks of 4
    (6400, 301, "bitmap", 1200),
    (6400, 300, "list", 1200),
    (6400, 0, "list", 0),
    (2**31 + 64, 10, "list", 80),  # such ids do not fit in int32
])  # fmt: skip
def test_the_cheapest_form_is_taken(ids: int, rows: int, kind: str, size: int) -> None:
    assert kind_of(ids, rows) == kind
    assert index_bytes(ids, rows) == size
    buffers = RowIndex(ids, rows, "meta").buffers()
    assert sum(b.numel() * b.element_size() for b in buffers) == size
    assert size <= 4 * ids  # what a remap takes


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_popcount_counts_bits(words: list[int]) -> None:
    assert popcount(torch.tensor(words)).tolist() == [(w & (2**64 - 1)).bit_count() for w in words]


def test_the_wrong_number_of_ids_is_refused() -> None:
    with pytest.raises(ValueError, match="index of 3 rows cannot take 2"):
        RowIndex(10, 3).fill(torch.tensor([1, 2]))
