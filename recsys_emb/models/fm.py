"""Factorisation machine."""

from __future__ import annotations

from torch import Tensor

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import CTRModel, Inputs, ModelConfig, register
from recsys_emb.models.layers import DenseEmbedding, FirstOrder, FMInteraction


@register("fm")
class FM(CTRModel):
    """Factorisation machine (Rendle 2010, eq. 1): bias, first order, and dot products of all pairs of fields."""

    summary = "factorisation machine"

    first_order = True

    def __init__(self, config: ModelConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.linear = FirstOrder(self.num_dense)
        self.dense = DenseEmbedding(self.num_dense, config.embedding_dim)
        self.interaction = FMInteraction()

    def logits(self, x: Inputs) -> Tensor:
        return self.linear(x.first_order, x.dense) + self.interaction(x.fields, self.dense(x.dense))
