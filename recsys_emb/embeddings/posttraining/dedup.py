"""Near-duplicate blocks of rows are stored once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, FieldReport, GroupSpec, Stats
from recsys_emb.embeddings.composed import starts_of
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.posttraining._lsh_blocks import LSHBlocks, blocks_of
from recsys_emb.embeddings.posttraining.base import PostTraining, narrowest, register

BLOCKS = (1, 2, 4, 8, 16, 32, 64)
DEFAULT_RATIO = 0.5


class DedupConfig(BackendConfig):
    """Options of ``dedup``."""

    block: int | None = Field(
        None,
        ge=1,
        le=1 << 16,
        description="b, rows of a block; more: fewer pointers, 1 to 4 bytes each, and fewer duplicates; absent: that "
        f"of {', '.join(map(str, BLOCKS))} with the least error",
    )
    shared: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of the stored blocks that hashes may merge others into; the rest goes to the blocks, and so "
        "to the frequent ids, that merging would harm most",
    )
    hashes: int = Field(
        8, ge=1, le=64, description="random projections that near-duplicates agree in; no effect on size"
    )
    seed: int = Field(0, description="of the projections; no effect on size")
    stored: int | None = Field(None, description="blocks that are stored; found from the budget and the rows")


@register("dedup")
class Dedup(PostTraining[DedupConfig]):
    """Deduplication (Zhou et al., "Serving Deep Learning Models with Deduplication from Relational Databases", VLDB
    2022, section 4; as in Zhang et al., "Experimental Analysis of Large-scale Learnable Vector Storage Compression",
    VLDB 2024): blocks of b rows that locality-sensitive hashes find alike become one, the mean of their rows by count.

    K stored blocks and a pointer for each of the B blocks of all tables: 4 K b D + B, 2 B or 4 B bytes. The width of
    the hashes is the least that leaves K blocks, so every budget down to one block is reached. Stored rows can be
    trained on (``compact.finetune``); pointers stay. Without a budget: half of the full tables.

        >>> collection.compact("dedup", budget=0.1, stats=counts)  # doctest: +SKIP
    """

    summary = "near-duplicate blocks of rows, found by locality-sensitive hashes, are stored once"
    Config = DedupConfig
    fitted = ("stored",)
    values: Tensor
    pointers: Tensor

    def __init__(self, spec: GroupSpec, config: DedupConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.block is not None
        assert config.stored is not None
        self.block, self.blocks = config.block, blocks_of(spec, config.block)
        self.starts = starts_of(self.blocks)
        self.register_buffer("values", torch.empty(config.stored * config.block, spec.embedding_dim, device=device))
        dtype = narrowest(config.stored - 1)
        self.register_buffer("pointers", torch.empty(sum(self.blocks), dtype=dtype, device=device))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        block = torch.div(ids, self.block, rounding_mode="floor")
        stored = self.pointers.index_select(0, block + per_id(self.starts, counts, ids)).long()
        return F.embedding(stored * self.block + ids - block * self.block, self.array("values"))

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: DedupConfig, stats: Stats | None = None) -> int:
        return min(_bytes(spec, block, 1) for block in _choices(config))

    @classmethod
    def fit(
        cls, trained: EmbeddingBackend[Any], config: DedupConfig, budget: int | None = None, stats: Stats | None = None
    ) -> Self:
        spec = trained.spec
        if budget is None:
            budget = max(cls.min_bytes(spec, config, stats), int(DEFAULT_RATIO * spec.full_bytes))
        best: tuple[float, int, Tensor, Tensor] | None = None
        for block in _choices(config):
            if (stored := _stored_within(spec, block, budget)) == 0:
                continue
            blocks = LSHBlocks(trained, block, stats)
            groups = blocks.merged(stored, config.shared, config.hashes, config.seed)
            means = blocks.means(groups)
            error = float(blocks.costs(groups, means).sum())
            if best is None or error < best[0]:
                best = error, block, groups, means
        assert best is not None
        _, block, groups, means = best
        made = cls(spec, config.model_copy(update={"block": block, "stored": int(groups.max()) + 1}), trained.device)
        made.values.copy_(means)
        made.pointers.copy_(groups)
        return made

    def describe(self) -> list[FieldReport]:
        dim, size = self.spec.embedding_dim, self.pointers.itemsize
        lines = [
            FieldReport(t.name, t.num_embeddings, 0, dim, n * size, f"pointers of {self.block} rows")
            for t, n in zip(self.spec.tables, self.blocks)
        ]
        rows = self.array("values").shape[0]
        return [*lines, FieldReport("(shared)", self.spec.num_embeddings, rows, dim, 4 * rows * dim, "stored blocks")]


def _choices(config: DedupConfig) -> Sequence[int]:
    return BLOCKS if config.block is None else (config.block,)


def _bytes(spec: GroupSpec, block: int, stored: int) -> int:
    """Bytes of so many stored blocks, and of the pointers."""
    return 4 * stored * block * spec.embedding_dim + sum(blocks_of(spec, block)) * narrowest(stored - 1).itemsize


def _stored_within(spec: GroupSpec, block: int, budget: int) -> int:
    """The most blocks that can be stored in ``budget`` bytes, 0 where one cannot; all blocks are enough."""
    low, high = 0, sum(blocks_of(spec, block)) + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _bytes(spec, block, middle) <= budget else (low, middle)
    return low
