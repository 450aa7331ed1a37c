"""AutoSrh: columns of blocks of ids are left out where their gates are small."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_emb.embeddings.backends._block_gates import GatedBackend, GatedConfig
from recsys_emb.embeddings.backends.kept_values import sparse_bytes
from recsys_emb.embeddings.base import register


@register("autosrh")
class AutoSrhBackend(GatedBackend[GatedConfig]):
    """AutoSrh (Kong et al., "AutoSrh: An Embedding Dimensionality Search Framework for Tabular Data Prediction", 2022).

    1. A row is multiplied by the gates of its block, ids of like frequency of a table, which learn from rows held out
       of training.
    2. Columns of blocks whose gates are small go, one limit for all, until the rest fits the budget. Evaluation sees
       what is left.
    3. That is trained again under its mask: :class:`KeptValuesBackend`.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "autosrh", budget=0.1).serving_bytes()  # at most
        64000
    """

    summary = "gates by frequency and column learn on held-out rows, small gates are cut"

    Config = GatedConfig

    def strength(self, vectors: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return self.gates(ids, counts).abs()

    @torch.no_grad()
    def _fit_cut(self) -> None:
        self.cut.zero_()
        if self.bytes >= self.spec.full_bytes:
            return
        gates, ids = self.gates.weight.abs().cpu(), self.gates.sizes().cpu()

        def too_many(limit: float) -> bool:
            columns = (gates > limit).sum(2)
            return sparse_bytes(self.spec, int((columns * ids).sum()), int(ids[columns > 0].sum())) > self.bytes

        limits = [0.0, *gates.flatten().unique().tolist()]  # rising
        self.cut.fill_(limits[bisect_left(limits, True, key=lambda limit: not too_many(limit))])
