"""Low-rank factorisation of every table."""

from __future__ import annotations

import torch
from pydantic import Field

from recsys_emb.embeddings.base import GroupSpec, Stats, register
from recsys_emb.embeddings.composed import (
    ComposedBackend,
    SizedConfig,
    check_range,
    parts_by_width,
    projected_floats,
    useful_width,
)


class LowRankConfig(SizedConfig):
    """Options of ``low_rank``."""

    ranks: tuple[int, ...] | None = Field(
        None,
        description="r of each table, 4 (N r + r D) bytes; D keeps it full; absent: one rank for all by the budget",
    )

    @property
    def sized(self) -> bool:
        return self.ranks is not None


@register("low_rank")
class LowRankBackend(ComposedBackend[LowRankConfig]):
    """A table is the product of N x r and r x D factors, trained as such: 4 r (N + D) bytes.

    All tables get the largest rank that the budget allows. What is left makes the smallest tables full, then gives
    one more rank, and a table whose factors would not be smaller is full anyway. The least is rank 1, about 1 / D of
    the full tables. Without a budget: a quarter.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "low_rank", budget=0.1).serving_bytes()
        40064
    """

    summary = "the table as a product of two thin factors"

    Config = LowRankConfig
    grows = True
    default_ratio = 0.25

    def __init__(self, spec: GroupSpec, config: LowRankConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.ranks is not None
        sizes, stds = [t.num_embeddings for t in spec.tables], [t.init_std for t in spec.tables]
        self.parts = parts_by_width(sizes, config.ranks, stds, spec.embedding_dim, device)

    @classmethod
    def checked(cls, spec: GroupSpec, config: LowRankConfig) -> LowRankConfig:
        check_range("ranks", spec, config.ranks, [spec.embedding_dim] * len(spec.tables))
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: LowRankConfig, stats: Stats | None) -> LowRankConfig:
        return config.model_copy(update={"ranks": tuple(_ranks(spec, 1))})

    @classmethod
    def size(cls, spec: GroupSpec, config: LowRankConfig, budget: int, stats: Stats | None) -> LowRankConfig:
        dim, floats = spec.embedding_dim, budget // 4
        rank = max(r for r in range(1, dim + 1) if _floats(spec, _ranks(spec, r)) <= floats)
        ranks = _ranks(spec, rank)
        left = floats - _floats(spec, ranks)
        sizes = [t.num_embeddings for t in spec.tables]
        for better in (dim, rank + 1):
            for t in sorted(range(len(sizes)), key=sizes.__getitem__):
                wider = max(ranks[t], useful_width(sizes[t], better, dim))
                cost = projected_floats(sizes[t], wider, dim) - projected_floats(sizes[t], ranks[t], dim)
                if cost <= left:
                    ranks[t], left = wider, left - cost
        return config.model_copy(update={"ranks": tuple(ranks)})


def _ranks(spec: GroupSpec, rank: int) -> list[int]:
    return [useful_width(t.num_embeddings, rank, spec.embedding_dim) for t in spec.tables]


def _floats(spec: GroupSpec, ranks: list[int]) -> int:
    return sum(projected_floats(t.num_embeddings, r, spec.embedding_dim) for t, r in zip(spec.tables, ranks))
