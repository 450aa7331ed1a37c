"""What all CTR models share: the embedding of a batch, then one method, ``logits``.

B rows, F fields (multi-valued ones pooled), Nd dense features, D = ``embedding_dim``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torchrec import JaggedTensor

from recsys_emb.data.batches import Batch
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.registry import Registry


class ModelConfig(BaseModel):
    """Options of a model; each model extends this."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    embedding_dim: int = Field(16, ge=1, description="columns of an embedding vector")


@dataclass(frozen=True)
class Inputs:
    """An embedded batch.

    dense:       float [B, Nd]
    fields:      float [B, F, D]
    first_order: float [B, F], each id's own weight, for models with ``first_order``
    sequences:   per sequence field, values [n, D] and lengths [B]; empty for models that do not use them
    """

    dense: Tensor
    fields: Tensor
    first_order: Tensor | None
    sequences: dict[str, JaggedTensor]


class CTRModel(nn.Module, ABC):
    """Embeds a batch and scores it. A subclass writes ``__init__`` and ``logits``.

    Args:
        config: the model's options.
        schema: the dataset's fields.
        embedding: embeds them; its width is ``embedding_width(config)``.
    """

    name: ClassVar[str]
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

    @classmethod
    def embedding_width(cls, config: ModelConfig) -> int:
        """Columns that the model wants of each id."""
        return config.embedding_dim + cls.first_order

    @classmethod
    def check(cls, config: ModelConfig, schema: DatasetSchema) -> None:
        """Raises UserError when the model cannot be trained on such a dataset."""

    @abstractmethod
    def logits(self, x: Inputs) -> Tensor:
        """float [B]: log-odds of a click."""

    def forward(self, batch: Batch) -> Tensor:
        """float [B]: log-odds of a click."""
        vectors, sequences = self.embedding(batch.sparse, batch.sequences)
        first_order = None
        if self.first_order:
            vectors, first_order = vectors[..., :-1], vectors[..., -1]
            sequences = {k: JaggedTensor(s.values()[:, :-1], lengths=s.lengths()) for k, s in sequences.items()}
        return self.logits(Inputs(batch.dense, vectors, first_order, sequences))


model_registry: Registry[type[CTRModel]] = Registry("model", "recsys_emb.models", "recsys_emb.models")
register = model_registry.register
