"""Multi-hash: every id is the sum of several hashed rows, so that few ids share all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.backends._hashed import HashedBackend, HashedConfig
from recsys_emb.embeddings.base import GroupSpec, Stats, register
from recsys_emb.embeddings.composed import Combiner, OwnRows, add
from recsys_emb.embeddings.tables import block_table
from recsys_emb.errors import SettingError

IMPORTANCE_SHARE = 0.5


class MultiHashConfig(HashedConfig):
    """Options of ``multi_hash``."""

    probes: int = Field(
        2, ge=1, le=16, description="k, rows that are summed for an id; more: fewer equal vectors, slower, no bytes"
    )
    importance: bool | None = Field(
        None,
        description="k weights learned for every id, as in the paper: 4 k bytes per id of a hashed table, and ids need "
        f"a list; absent: with a list, where they take at most {IMPORTANCE_SHARE:g} of the budget",
    )

    @property
    def rows_per_id(self) -> int:
        return self.probes

    @property
    def floats_per_id(self) -> int:
        return self.probes if self.importance else 0


@register("multi_hash")
class MultiHashBackend(HashedBackend[MultiHashConfig]):
    """Hash embeddings (Svenstrup et al., "Hash Embeddings for Efficient Word Representations", NeurIPS 2017, eq. 1).

    vector(id) = sum over k probes of p_k(id) * E[h_k(id)], E of M x D, p = 1 without ``importance``: 4 M D bytes, and
    4 k N with importance weights. A table whose share of the budget holds all its ids is full.

    Importance weights are the paper's, but take bytes for every id, so a small budget goes without.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "multi_hash", budget=0.1).serving_bytes()
        64000
    """

    summary = "sum of several hashed rows, weighted per id where that fits"
    Config = MultiHashConfig

    def combiner(self, ids: Sequence[int], device: torch.device | str | None) -> Combiner:
        return Importance(ids, self.config.probes, device) if self.config.importance else add

    @classmethod
    def checked(cls, spec: GroupSpec, config: MultiHashConfig) -> MultiHashConfig:
        if spec.hashed and config.importance:
            raise SettingError("options.importance", "needs the list of ids, and 63-bit hashes have none")
        return super().checked(spec, config)

    @classmethod
    def size(cls, spec: GroupSpec, config: MultiHashConfig, budget: int, stats: Stats | None) -> MultiHashConfig:
        if config.importance is None:
            weights = 4 * config.probes * spec.num_embeddings
            fits = not spec.hashed and weights <= IMPORTANCE_SHARE * budget
            config = config.model_copy(update={"importance": fits})
        return super().size(spec, config, budget, stats)


class Importance(nn.Module):
    """Sum of the probes' rows, each times a weight that the id learns for it.

    Args:
        ids: ids of each table.
        probes: k.
    """

    def __init__(self, ids: Sequence[int], probes: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.table = block_table(ids, probes, [0.0] * len(ids), device, [nn.init.ones_] * len(ids))
        self.transform = OwnRows(ids)

    def forward(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        weights = self.table(self.transform(ids, counts))
        return (rows * weights[..., None]).sum(1)  # a product would run in bf16 under autocast
