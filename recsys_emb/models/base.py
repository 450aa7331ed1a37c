"""What all CTR models share: the embedding of a batch, then one method, ``logits``.

B rows, F fields (multi-valued ones pooled), Nd dense features, D = ``embedding_dim``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from recsys_emb.data.batches import Batch
from recsys_emb.data.jagged import jagged
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.autodis import AutoDis
from recsys_emb.registry import Registry

if TYPE_CHECKING:
    from torchrec import JaggedTensor


class ModelConfig(BaseModel):
    """Options of a model; each model extends this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    embedding_dim: int = Field(16, ge=1, description="columns of an embedding vector")
    dense_buckets: int | None = Field(
        None,
        ge=2,
        description="vectors of each dense feature that its value mixes, so that it is one more field (AutoDis); "
        "absent: it is a number",
    )


@dataclass(frozen=True)
class Inputs:
    """An embedded batch. Dense features that are encoded are the last of the fields, and Nd is 0.

    dense:       float [B, Nd]
    fields:      float [B, F, D]
    first_order: float [B, F], each id's own weight, for models with ``first_order``
    sequences:   per sequence field, values [n, D] and lengths [B]; empty for models that do not use them
    """

    dense: Tensor
    fields: Tensor
    first_order: Tensor | None
    sequences: dict[str, JaggedTensor]

    def flat(self, *more: Tensor) -> Tensor:
        """All vectors, dense features and ``more`` ([B, any] each) side by side: float [B, F*D + Nd + ...]."""
        # Faster than one concatenation of the F strided vectors, whose backward takes F small copies.
        vectors = self.fields.flatten(1)
        others = [part for part in (self.dense, *more) if part.shape[1]]
        return torch.cat([vectors, *others], dim=1) if others else vectors


class BatchLosses(Protocol):
    """The losses of one batch, each summed over its rows, float32 without dimensions."""

    @property
    def rows(self) -> int:
        """B."""

    def loss(self, logits: Tensor) -> Tensor:
        """How far logits [B] are from the labels."""

    def distance(self, logits: Tensor, teacher: Tensor) -> Tensor:
        """How far logits [B] are from another's, ``teacher`` [B]."""


class CTRModel(nn.Module, ABC):
    """Embeds a batch and scores it. A subclass writes ``__init__`` and ``logits``.

    A model that is trained with more than the loss of its logits writes ``logits_and_loss`` too.

    Args:
        config: the model's options.
        schema: the dataset's fields.
        embedding: embeds them; its width is ``embedding_width(config)``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """What it is, in a few words for lists."""
    Config: ClassVar[type[ModelConfig]] = ModelConfig
    first_order: ClassVar[bool] = False
    """The backend gives one more column, each id's first-order weight, so that it is part of the memory budget."""
    uses_sequences: ClassVar[bool] = False
    """Sequences come unpooled in ``Inputs.sequences``; otherwise each is one more field, its average."""

    def __init__(self, config: ModelConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.num_fields = embedding.num_fields
        self.num_dense = len(schema.dense)
        self.encoded: AutoDis | None = None
        if config.dense_buckets and schema.dense:
            self.encoded = AutoDis(self.num_dense, config.dense_buckets, embedding.width)
            self.num_fields, self.num_dense = self.num_fields + self.num_dense, 0
        self.flat_width = self.num_fields * config.embedding_dim + self.num_dense  # of ``Inputs.flat()``

    @classmethod
    def embedding_width(cls, config: ModelConfig) -> int:
        """Columns that the model wants of each id, the first-order weight last."""
        return config.embedding_dim + cls.first_order

    @classmethod
    def check(cls, config: ModelConfig, schema: DatasetSchema) -> None:
        """Raises UserError when the model cannot be trained on such a dataset."""

    def dense_state(self) -> dict[str, Tensor]:
        """``state_dict()`` without what belongs to the embedding backend."""
        return {name: t for name, t in self.state_dict().items() if not name.startswith("embedding.backend.")}

    @abstractmethod
    def logits(self, x: Inputs) -> Tensor:
        """float [B]: log-odds of a click."""

    def logits_and_loss(self, x: Inputs, losses: BatchLosses) -> tuple[Tensor, Tensor | None]:
        """For training: float [B], log-odds of a click, and what is added to their loss, summed over the rows."""
        return self.logits(x), None

    def forward(self, batch: Batch) -> Tensor:
        """float32 [B]: log-odds of a click, under autocast too."""
        return self.logits(self.embed(batch)).float()

    def scored(self, batch: Batch, losses: BatchLosses) -> tuple[Tensor, Tensor | None]:
        """``forward`` with what the model adds to the loss of its logits, summed over the rows; None: nothing."""
        logits, more = self.logits_and_loss(self.embed(batch), losses)
        return logits.float(), more

    def embed(self, batch: Batch) -> Inputs:
        """The embedded batch."""
        vectors, sequences = self.embedding(batch.sparse, batch.sequences)
        dense, first_order = batch.dense, None
        if self.encoded is not None:
            vectors, dense = torch.cat([vectors, self.encoded(dense)], dim=1), dense[:, :0]
        if self.first_order:
            vectors, first_order = vectors.split([vectors.shape[-1] - 1, 1], dim=-1)  # slices would each pad gradients
            first_order = first_order.squeeze(-1)
            sequences = {k: jagged(s.values()[:, :-1], s.lengths()) for k, s in sequences.items()}
        return Inputs(dense, vectors, first_order, sequences)


model_registry: Registry[type[CTRModel]] = Registry("model", "recsys_emb.models", "recsys_emb.models")
register = model_registry.register


def build_model(config: ModelConfig, schema: DatasetSchema, backend: EmbeddingBackend) -> CTRModel:
    """The model ``config.name`` for a dataset, on a backend.

    Args:
        config: an instance of the model's own ``Config``.
        schema: the dataset's fields.
        backend: serves ``group_spec(schema, embedding_width(config), ...)``.

    Raises:
        UserError: unknown model, or one that cannot be trained on such a dataset.
        ValueError: the backend has another width.
    """
    cls = model_registry.get(config.name)
    cls.check(config, schema)
    if backend.spec.embedding_dim != cls.embedding_width(config):
        raise ValueError(
            f"{cls.name} wants {cls.embedding_width(config)} columns of each id, the backend has "
            f"{backend.spec.embedding_dim}"
        )
    return cls(config, schema, FieldEmbedding(schema, backend, pool_sequences=not cls.uses_sequences))
