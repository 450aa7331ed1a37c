"""What single values of trained rows are worth, and what a form of the rows costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, Stats
from recsys_emb.embeddings.composed import starts_of
from recsys_emb.embeddings.posttraining._table_fit import UNSEEN_WEIGHT
from recsys_emb.embeddings.posttraining.base import Sensitivity, all_rows


class Worth:
    """A value w of column j of a row that training looked up c times is worth w^2 c S_jj, twice what the summed loss
    rises when it goes (LeCun, Denker, Solla, "Optimal Brain Damage", 1989, eq. 5), and w^2 where S is not known.

    Args:
        spec: the tables.
        stats: id counts; where they are not known, every id counts alike.
        sensitivity: S.
    """

    def __init__(self, spec: GroupSpec, stats: Stats | None, sensitivity: Sensitivity | None) -> None:
        names, dim = [t.name for t in spec.tables], spec.embedding_dim
        self.known = sensitivity is not None
        self.metrics = [torch.eye(dim, dtype=torch.float64) if sensitivity is None else sensitivity[n] for n in names]
        self.columns = [metric.diagonal().clamp(min=0).sqrt().float() for metric in self.metrics]
        counts = [self._counts(t.num_embeddings, None if stats is None else stats.get(t.name)) for t in spec.tables]
        self.counts = torch.cat(counts)

    def _counts(self, ids: int, counts: np.ndarray | None) -> Tensor:
        if counts is None or not self.known:
            return torch.ones(ids)
        return torch.from_numpy(np.asarray(counts)).float() + UNSEEN_WEIGHT

    def roots(self, table: int, place: slice, rows: Tensor) -> Tensor:
        """The roots of what values are worth: float32 [n, D] of rows [n, D] at a place among those of all tables."""
        device = rows.device
        return rows.abs() * self.counts[place].sqrt().to(device)[:, None] * self.columns[table].to(device)

    def cost(self, trained: EmbeddingBackend[Any], form: EmbeddingBackend[Any]) -> float:
        """What the errors of a form cost, about twice the rise of the summed loss; else their squares."""
        total, sizes = 0.0, [t.num_embeddings for t in trained.spec.tables]
        starts = starts_of(sizes).tolist()
        for table, place, rows in all_rows(trained):
            ids = torch.arange(place.start - starts[table], place.stop - starts[table], device=rows.device)
            given = form.lookup(ids, [len(ids) if t == table else 0 for t in range(len(sizes))])
            error = (rows - given).double().cpu()
            total += float(((error @ self.metrics[table].cpu()) * error).sum(1) @ self.counts[place].double())
        return total
