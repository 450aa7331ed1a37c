"""The hashing trick: ids share rows that a hash function picks."""

from __future__ import annotations

from recsys_emb.embeddings.backends._hashed import HashedBackend, HashedConfig
from recsys_emb.embeddings.base import register


class HashConfig(HashedConfig):
    """Options of ``hash``."""


@register("hash")
class HashBackend(HashedBackend[HashConfig]):
    """Feature hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009).

    A table of N ids keeps M rows, vector(id) = E[h(id)] with h a seeded mixing hash: 4 M D bytes. A table that has
    room for all its ids is full, without hashing. Without a budget: a tenth of the full tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "hash", budget=0.1).serving_bytes()
        64000
    """

    summary = "ids share hashed rows"
    Config = HashConfig
