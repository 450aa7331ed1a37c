"""Which ids of a table are served with the same row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recsys_emb.data.splitmix import splitmix64
from recsys_emb.embeddings.base import EmbeddingBackend


@torch.no_grad()
def same_rows(backend: EmbeddingBackend[Any], table: int) -> np.ndarray:
    """int64 [num_embeddings]: of each id of a table the least id whose row, as it is looked up, is the same.

    Rows are told apart by hashes of 64 bits, and those found equal are then compared.

    Raises:
        UserError: the table's ids are hashes, which have no list.
    """
    hashes = np.concatenate([_hashes(_words(rows)) for rows in backend.rows(table)])
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    same = first[inverse]
    counts, start = [0] * len(backend.spec.tables), 0
    for rows in backend.rows(table):
        least = same[start : start + len(rows)]
        counts[table] = len(rows)
        found = backend.lookup(torch.from_numpy(least).to(rows.device), counts)
        differs = (_words(found) != _words(rows)).any(axis=1)
        least[differs] = start + np.flatnonzero(differs)
        start += len(rows)
    return same


def _words(rows: torch.Tensor) -> np.ndarray:
    """uint32 [n, D]: the bits of float rows."""
    return rows.float().cpu().contiguous().numpy().view(np.uint32)


def _hashes(words: np.ndarray) -> np.ndarray:
    """uint64 [n] of uint32 [n, D]."""
    state = np.zeros(len(words), np.uint64)
    for column in words.T:
        state = splitmix64(state * np.uint64(3) + column + np.uint64(1))
    return state
