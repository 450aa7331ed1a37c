"""Forms that store every row by itself, all in the same number of bytes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import torch
from torch import Tensor

from recsys_emb.embeddings.base import C, EmbeddingBackend, FieldReport, GroupSpec, Stats
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.posttraining.base import PostTraining, all_rows


class ByRow(PostTraining[C]):
    """N rows of one size; a subclass registers its arrays, whose first dimension is N, and says how rows are stored."""

    def __init__(self, spec: GroupSpec, config: C, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])

    @abstractmethod
    def store(self, place: slice, rows: Tensor) -> None:
        """Writes rows, float32 [n, D], to a place among the rows of all tables."""

    @classmethod
    def fit(
        cls, trained: EmbeddingBackend[Any], config: C, budget: int | None = None, stats: Stats | None = None
    ) -> Self:
        made = cls(trained.spec, config, trained.device)
        for _, place, rows in all_rows(trained):
            made.store(place, rows)
        return made

    def describe(self) -> list[FieldReport]:
        dim, row = self.spec.embedding_dim, self.serving_bytes() // self.spec.num_embeddings
        sizes = [(t.name, t.num_embeddings) for t in self.spec.tables]
        return [FieldReport(name, n, n, dim, row * n, self.name) for name, n in sizes]
