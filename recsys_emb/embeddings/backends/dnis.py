"""DNIS: soft selection of the columns that ids of each frequency need."""

from __future__ import annotations

import torch

from recsys_emb.embeddings.backends._block_gates import GatedBackend, GatedConfig
from recsys_emb.embeddings.base import register


@register("dnis")
class DNISBackend(GatedBackend[GatedConfig]):
    """DNIS (Cheng, Shen, Huang, "Differentiable Neural Input Search for Recommender Systems", 2020).

    1. A row is multiplied by the gates of its block, ids of like frequency of a table (section 3.2). Gates learn from
       rows held out of training; a block's gradient is divided by its mean magnitude (eq. 6), or the gates of frequent
       ids alone would move.
    2. Values of rows times gates that are small go, one limit for all tables, until the rest fits the budget (section
       3.4). Evaluation sees what is left.
    3. That is trained again under its mask: :class:`KeptValuesBackend`.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> first = make_embedding_bag_collection([table], "dnis", budget=0.1)
        >>> then = first.search(lambda: 0.5)  # once it is trained; nothing is scored
        >>> first.serving_bytes(), then.serving_bytes() <= 64000
        (64000, True)
    """

    summary = "gates by frequency and column learn on held-out rows, small products are cut"

    Config = GatedConfig

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        gradient = self.gates.weight.grad
        if gradient is not None:
            gradient.div_(gradient.abs().mean(2, keepdim=True).clamp(min=1e-12))
