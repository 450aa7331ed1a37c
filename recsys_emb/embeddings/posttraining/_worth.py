"""What single values of trained rows are worth, and what a form of the rows costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, Stats
from recsys_emb.embeddings.composed import starts_of
from recsys_emb.embeddings.posttraining.base import ErrorCost, Sensitivity, all_rows

UNSEEN_WEIGHT = 0.1
"""What an id that training never saw counts beside the occurrences of the others."""


class Worth:
    """A value w of column j of a row that training looked up c times, each lookup worth r mean ones, is worth
    w^2 c r S_jj, twice what the summed loss rises when it goes (LeCun, Denker, Solla, "Optimal Brain Damage", 1989,
    eq. 5), and w^2 where S is not known.

    Args:
        spec: the tables.
        stats: id counts; where they are not known, every id counts alike.
        sensitivity: S and r.
    """

    def __init__(self, spec: GroupSpec, stats: Stats | None, sensitivity: Sensitivity | None) -> None:
        self.known = sensitivity is not None
        if sensitivity is None:
            alike = torch.eye(spec.embedding_dim, dtype=torch.float64)
            costs = [ErrorCost(alike, torch.ones(t.num_embeddings)) for t in spec.tables]
        else:
            costs = [sensitivity[t.name] for t in spec.tables]
        self.metrics = [cost.metric for cost in costs]
        self.columns = [metric.diagonal().clamp(min=0).sqrt().float() for metric in self.metrics]
        known = [None if stats is None or not self.known else stats.get(t.name) for t in spec.tables]
        self.counts = torch.cat([_lookups(cost, counts) for cost, counts in zip(costs, known)])

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


def _lookups(cost: ErrorCost, counts: np.ndarray | None) -> Tensor:
    """How much each id was looked up, float32 [N], in lookups that matter as the mean one does."""
    if counts is None:
        return torch.ones(len(cost.relative))
    return (torch.from_numpy(np.asarray(counts)).float() + UNSEEN_WEIGHT) * cost.relative.cpu()
