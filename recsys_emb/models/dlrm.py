"""DLRM."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel, Inputs, ModelConfig, register
from recsys_emb.models.layers import MLP, DeepConfig, DotInteraction, Logit, Units


class DLRMConfig(DeepConfig):
    """Options of DLRM; ``hidden`` is its over arch."""

    bottom: Units = Field((64,), description="units of the dense arch; one more layer of embedding_dim units follows")


@register("dlrm")
class DLRM(CTRModel):
    """DLRM (Naumov et al. 2019, section 2.5): dense features become one more vector; pairwise dot products go deep.

    Without dense features there is no dense arch, and the over arch sees the dot products alone.
    """

    summary = "pairwise dot products into a deep network"

    Config = DLRMConfig

    def __init__(self, config: DLRMConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.bottom: MLP | None = None
        if self.num_dense:
            units = [*config.bottom, config.embedding_dim]
            self.bottom = MLP(self.num_dense, units, config.dropout, config.batch_norm)
        self.interaction = DotInteraction(self.num_fields + bool(self.num_dense))
        width = self.interaction.out_features + config.embedding_dim * bool(self.num_dense)
        over = MLP(width, config.hidden, config.dropout, config.batch_norm)
        self.over = nn.Sequential(over, Logit(over.out_features))

    @classmethod
    def check(cls, config: ModelConfig, schema: DatasetSchema) -> None:
        if len(schema.embedded) + bool(schema.dense) < 2:
            raise UserError("model.name: dlrm multiplies pairs of fields, but the dataset has one field; use lr or fm")

    def logits(self, x: Inputs) -> Tensor:
        if self.bottom is None:
            return self.over(self.interaction(x.fields))
        dense = self.bottom(x.dense)  # [B, D]
        vectors = torch.cat([x.fields.to(dense.dtype), dense[:, None]], dim=1)  # [B, F + 1, D]
        return self.over(torch.cat([dense, self.interaction(vectors)], dim=1))
