"""Methods that compress a trained backend's rows, without training."""

from __future__ import annotations

from recsys_emb.embeddings.posttraining.base import (
    PostTraining,
    compress,
    min_compressed_bytes,
    plan_compression,
    posttraining_options,
    posttraining_registry,
)

__all__ = [
    "PostTraining",
    "compress",
    "list_posttraining",
    "min_compressed_bytes",
    "plan_compression",
    "posttraining_options",
    "posttraining_registry",
]


def list_posttraining() -> list[str]:
    """Names of all post-training methods, those of other packages included."""
    return posttraining_registry.names()
