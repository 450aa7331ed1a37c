"""Rows as 16-bit floats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, GroupSpec
from recsys_emb.embeddings.posttraining._by_row import ByRow
from recsys_emb.embeddings.posttraining.base import register, saturated


@register("fp16")
class HalfRows(ByRow[BackendConfig]):
    """IEEE half precision, 2 N D bytes. The error of a value x is at most 2^-11 |x|, below 2^-14 at most 2^-25; values
    beyond 65504 are cut there."""

    summary = "rows as 16-bit floats"
    values: Tensor

    def __init__(self, spec: GroupSpec, config: BackendConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        shape = (spec.num_embeddings, spec.embedding_dim)
        self.register_buffer("values", torch.empty(shape, dtype=torch.float16, device=device))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return F.embedding(self.rows_of(ids, counts), self.values).float()

    def store(self, place: slice, rows: Tensor) -> None:
        self.values[place] = saturated(rows, torch.float16)
