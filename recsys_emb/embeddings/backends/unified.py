"""Unified embedding: all fields share one table, each through its own hash functions."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from recsys_emb.embeddings.base import GroupSpec, Stats, register
from recsys_emb.embeddings.composed import Combiner, ComposedBackend, Concat, HashedRows, Part, SizedConfig, add
from recsys_emb.embeddings.hashing import MAX_ROWS, seeds
from recsys_emb.embeddings.tables import block_table


class UnifiedConfig(SizedConfig):
    """Options of ``unified``."""

    probes: int = Field(2, ge=1, le=16, description="c, rows per id; more: fewer equal vectors, slower")
    combine: Literal["concat", "sum"] = Field(
        "concat", description="concat: rows of D / c columns, so c times as many of them in the same bytes; sum: of D"
    )
    seed: int = Field(0, description="of the hash functions; no effect on size")
    rows: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="M, rows that all tables share; more: fewer collisions, more bytes; absent: by the budget",
    )

    @property
    def sized(self) -> bool:
        return self.rows is not None


@register("unified")
class UnifiedBackend(ComposedBackend[UnifiedConfig]):
    """Feature multiplexing (Coleman et al., "Unified Embedding: Battle-Tested Feature Representations for Web-Scale
    ML Systems", NeurIPS 2023, section 3).

    One M x W table for all tables of the group; vector(id of table t) = concatenation (W = D / c) or sum (W = D) of
    E[h_tj(id)] over c probes j: 4 M W bytes. Each field has its own hash functions, so two fields collide at random,
    which a model can tell apart. Without a budget: a tenth of the full tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "unified", budget=0.1).serving_bytes()
        64000
    """

    summary = "all tables share one, each with its own hash seeds"

    Config = UnifiedConfig
    needs_id_list = False
    grows = True

    def __init__(self, spec: GroupSpec, config: UnifiedConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.rows is not None
        tables, probes = len(spec.tables), config.probes
        std = (sum(t.init_std**2 for t in spec.tables) / tables) ** 0.5  # one table, so one scale
        combine: Combiner = Concat(spec.embedding_dim)
        if config.combine == "sum":
            std, combine = std / probes**0.5, add
        table = block_table([config.rows], _width(spec, config), [std], device)
        probe_seeds = seeds(tables * probes, config.seed).view(tables, probes)
        transform = HashedRows(torch.full((tables,), config.rows), torch.zeros(tables, dtype=torch.int64), probe_seeds)
        self.parts = nn.ModuleDict({"shared": Part(range(tables), transform, table, combine, "shared")})

    @classmethod
    def smallest(cls, spec: GroupSpec, config: UnifiedConfig, stats: Stats | None) -> UnifiedConfig:
        return config.model_copy(update={"rows": 1})

    @classmethod
    def size(cls, spec: GroupSpec, config: UnifiedConfig, budget: int, stats: Stats | None) -> UnifiedConfig:
        width = _width(spec, config)
        most = min(MAX_ROWS, max(1, spec.full_bytes // (4 * width)))
        return config.model_copy(update={"rows": min(budget // (4 * width), most)})


def _width(spec: GroupSpec, config: UnifiedConfig) -> int:
    return -(-spec.embedding_dim // config.probes) if config.combine == "concat" else spec.embedding_dim
