"""Gates on the columns of blocks of ids of like frequency: what ``dnis`` and ``autosrh`` have in common.

G blocks of each of T tables, D columns, n ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.backends._sparse_rows import SparseBackend, SparseConfig
from recsys_emb.embeddings.base import BackendConfig, GroupSpec, ParamGroup, Stats, falls_with_id
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.stages import Bilevel, InitFrom, Search, Stage, Train


class GatedConfig(SparseConfig):
    """What such methods have as options."""

    blocks: int = Field(
        4, ge=1, le=64, description="per table, of ids of like frequency and of equal traffic; 1 where it is not known"
    )
    arch_lr: float = Field(0.1, gt=0, description="learning rate of gates, as a factor on the model's")
    every: int = Field(4, ge=1, description="steps of the weights between two of the gates; fewer: slower")
    one_in: int = Field(10, ge=2, description="of so many training rows one is held out for the gates")
    retrain_from: Literal["initial", "best"] = Field(
        "initial", description="weights that what is left is trained from: those at the very start, or the best"
    )


G = TypeVar("G", bound=GatedConfig)


class GatedBackend(SparseBackend[G]):
    """A row for every id, times a gate for each column of its block; gates learn from held-out rows."""

    def __init__(self, spec: GroupSpec, config: G, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.gates = BlockGates(spec, config.blocks, device)

    def sparse(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return rows * self.gates(ids, counts)

    def see_counts(self, stats: Stats) -> None:
        self.gates.see_counts(stats)

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        assert isinstance(config, GatedConfig)
        bilevel = Bilevel(config.every, config.one_in)
        return Train("gates", bilevel=bilevel), Search(), Train("retrain", InitFrom(checkpoint=config.retrain_from))

    def param_groups(self) -> list[ParamGroup]:
        return [
            ParamGroup("weight", [self.table.weight]),
            ParamGroup("arch", [self.gates.weight], self.config.arch_lr),
        ]


class BlockGates(nn.Module):
    """``weight`` float [T, G, D], 1 at the start. ``begins`` int64 [T, G - 1]: the first ids of all blocks but the
    first. A table whose counts are not known, or do not fall with the id, is one block."""

    begins: Tensor

    def __init__(self, spec: GroupSpec, blocks: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.spec, self.blocks = spec, blocks
        tables = len(spec.tables)
        self.weight = nn.Parameter(torch.ones(tables, blocks, spec.embedding_dim, device=device))
        self.register_buffer("begins", torch.empty(tables, blocks - 1, dtype=torch.int64, device=device))
        self.first = torch.arange(tables) * blocks
        if not self.weight.is_meta:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        for begins, table in zip(self.begins, self.spec.tables):
            begins.fill_(table.num_embeddings)

    def see_counts(self, stats: Stats) -> None:
        for begins, table in zip(self.begins, self.spec.tables):
            counts = stats.get(table.name)
            if counts is not None and falls_with_id(counts) and not begins.is_meta:
                traffic = np.cumsum(counts, dtype=np.float64)
                cuts = np.searchsorted(traffic, traffic[-1] * np.arange(1, self.blocks) / self.blocks) + 1
                begins.copy_(torch.from_numpy(np.minimum(cuts, table.num_embeddings)))

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """ids int64 [n], table-major -> float [n, D]."""
        block = (ids[:, None] >= per_id(self.begins, counts, ids)).sum(1) + per_id(self.first, counts, ids)
        return self.weight.flatten(0, 1).index_select(0, block)

    def sizes(self) -> Tensor:
        """Ids of each block, int64 [T, G]."""
        ends = torch.tensor([t.num_embeddings for t in self.spec.tables], device=self.begins.device)[:, None]
        return torch.cat([self.begins, ends], dim=1).diff(dim=1, prepend=torch.zeros_like(ends))
