"""Rows as 16-bit floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, FieldReport, GroupSpec, Stats
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.posttraining.base import PostTraining, all_rows, register

LARGEST = 65504.0


@register("fp16")
class HalfRows(PostTraining[BackendConfig]):
    """IEEE half precision, 2 N D bytes: relative error at most 2^-11; values beyond 65504 are cut there."""

    summary = "rows as 16-bit floats"

    def __init__(self, spec: GroupSpec, config: BackendConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.register_buffer("values", torch.empty(shape, dtype=torch.float16, device=device))

    values: Tensor

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return F.embedding(self.rows_of(ids, counts), self.values).float()

    @classmethod
    def fit(
        cls,
        trained: EmbeddingBackend[Any],
        config: BackendConfig,
        budget: int | None = None,
        stats: Stats | None = None,
    ) -> Self:
        spec = trained.spec
        made = cls(spec, config, trained.device)
        for _, place, rows in all_rows(trained):
            made.values[place] = rows.clamp(-LARGEST, LARGEST)
        return made

    def describe(self) -> list[FieldReport]:
        dim = self.spec.embedding_dim
        sizes = [(t.name, t.num_embeddings) for t in self.spec.tables]
        return [FieldReport(name, n, n, dim, 2 * dim * n, "fp16") for name, n in sizes]
