"""Embedding backends behind one contract, and collections that stand in for TorchRec's."""

from __future__ import annotations

from recsys_emb.embeddings.base import EmbeddingBackend, backend_registry
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.collections import make_embedding_bag_collection, make_embedding_collection

__all__ = [
    "EmbeddingBackend",
    "backend_registry",
    "list_backends",
    "make_embedding_bag_collection",
    "make_embedding_collection",
    "plan_backend",
]


def list_backends() -> list[str]:
    """Names of all embedding backends, those of other packages included."""
    return backend_registry.names()
