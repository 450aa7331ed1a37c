"""What an embedding's arrays are the arrays of, as data: enough to build the module anew, without its values."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, backend_registry
from recsys_emb.embeddings.finetune import TrainableForm
from recsys_emb.embeddings.posttraining import PostTraining, posttraining_registry


class Form(BaseModel):
    """How an embedding is stored: a backend, or a post-training method's form of one, and the sizes it was built with.

    Attributes:
        backend: the name of the backend that was trained.
        method: the name of the post-training method that made the form, if one did.
        config: all sizes.
        trainable: its floats are being trained (:class:`TrainableForm`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str
    method: str | None = None
    config: dict[str, Any]
    trainable: bool = False

    @classmethod
    def of(cls, embedding: EmbeddingBackend[Any], backend: str) -> Form:
        """The form of an embedding; ``backend`` is the one that a run began with."""
        form = embedding.form if isinstance(embedding, TrainableForm) else embedding
        method = form.name if isinstance(form, PostTraining) else None
        return cls(
            backend=backend if method else form.name,
            method=method,
            config=form.config.model_dump(mode="json"),
            trainable=form is not embedding,
        )

    @property
    def module(self) -> type[EmbeddingBackend[Any]]:
        """The class. Raises UserError when there is none of this name."""
        return backend_registry.get(self.backend) if self.method is None else posttraining_registry.get(self.method)

    def build(self, spec: GroupSpec, device: torch.device | str | None = None) -> EmbeddingBackend[Any]:
        """The module, its values not yet known. Raises ValidationError when ``config`` is not the class's."""
        cls = self.module
        made = cls(spec, cls.Config.model_validate(self.config), device)
        return TrainableForm(made) if self.trainable else made
