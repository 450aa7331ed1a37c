"""CTR models, one file each; each registers itself and is found by its file being here."""

from __future__ import annotations

from recsys_emb.models.base import CTRModel, ModelConfig, model_registry

__all__ = ["CTRModel", "ModelConfig", "list_models", "model_registry"]


def list_models() -> list[str]:
    """Names of all CTR models, those of other packages included."""
    return model_registry.names()
