"""Embedding backends behind one contract, and collections that stand in for TorchRec's, which is imported with them."""

from __future__ import annotations

from typing import Any

from recsys_emb.embeddings.base import EmbeddingBackend, backend_registry
from recsys_emb.embeddings.budget import plan_backend

__all__ = [
    "EmbeddingBackend",
    "backend_registry",
    "list_backends",
    "make_embedding_bag_collection",
    "make_embedding_collection",
    "plan_backend",
]


def __getattr__(name: str) -> Any:
    if name not in ("make_embedding_bag_collection", "make_embedding_collection"):
        raise AttributeError(f"module 'recsys_emb.embeddings' has no attribute {name!r}")
    from recsys_emb.embeddings import collections

    return getattr(collections, name)


def list_backends() -> list[str]:
    """Names of all embedding backends, those of other packages included."""
    return backend_registry.names()
