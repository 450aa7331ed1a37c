"""L2 on the ids of a batch by how rare they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from recsys_emb.embeddings.base import TableSpec
from recsys_emb.embeddings.counts import per_id
from recsys_emb.errors import UserError


class CountedL2:
    """DIN's mini-batch aware regularisation (Zhou et al. 2018, eq. 4): gradient ``l2 * w / n`` for each id of a batch.

    n is how often an id occurs in the train split, and w the row that serves it, whatever the backend stores. An id
    that occurs several times in a batch counts once.

    Args:
        tables: of the group.
        counts: n of every id by table name, int [num_embeddings]; where it is 0, n is 1.
        l2: lambda.
        device: where ids and rows are.

    Raises:
        UserError: ids are hashes, whose counts nobody knows.
    """

    def __init__(
        self, tables: Sequence[TableSpec], counts: Mapping[str, np.ndarray], l2: float, device: torch.device
    ) -> None:
        hashed = next((t.name for t in tables if t.hashed), None)
        if hashed is not None:
            raise UserError(
                f"training.l2_by_count: ids of {hashed!r} are hashes, which have no counts; use l2_embedding"
            )
        each = [torch.from_numpy(np.asarray(counts[t.name], dtype=np.float32)) for t in tables]
        self.strength = (l2 / torch.cat(each).clamp(min=1)).to(device)
        sizes = torch.tensor([t.num_embeddings for t in tables], device=device)
        self.offsets = sizes.cumsum(0) - sizes

    def apply(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> None:
        """Adds to the gradient that the rows of a lookup will get.

        Args:
            rows: float [N, D], what a backend gave.
            ids: int64 [N], each table's own.
            counts: how many ids belong to each table.
        """
        if not rows.requires_grad:
            return
        numbers = ids + per_id(self.offsets, counts, ids)
        _, inverse, times = torch.unique(numbers, return_inverse=True, return_counts=True)
        strength = self.strength[numbers] / times[inverse]
        added = strength[:, None] * rows.detach()
        rows.register_hook(lambda grad: grad + added)
