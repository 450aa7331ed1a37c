"""AutoInt."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.attention import MultiHeadSelfAttention
from recsys_emb.models.base import CTRModel, Inputs, ModelConfig, register
from recsys_emb.models.layers import DenseEmbedding, Logit


class AutoIntConfig(ModelConfig):
    """Options of AutoInt's interacting layers; the defaults are the paper's (section 5.1.4)."""

    attention_layers: int = Field(3, ge=1, description="interacting layers")
    heads: int = Field(2, ge=1, description="heads of each layer")
    attention_dim: int = Field(32, ge=1, description="columns of each head")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="share of attention weights dropped")
    residual: bool = Field(True, description="add each layer's input to its output")
    scale: bool = Field(False, description="divide attention scores by the root of attention_dim")
    layer_norm: bool = Field(False, description="normalise each field's vector before a layer's ReLU")


@register("autoint")
class AutoInt(CTRModel):
    """AutoInt (Song et al. 2019, section 4): fields attend to each other, layer upon layer, then one linear layer."""

    summary = "self-attention between fields"

    Config: ClassVar[type[ModelConfig]] = AutoIntConfig

    def __init__(self, config: AutoIntConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.dense = DenseEmbedding(self.num_dense, config.embedding_dim)
        width = config.heads * config.attention_dim
        self.attention = nn.Sequential(
            *(
                MultiHeadSelfAttention(
                    width if layer else config.embedding_dim,
                    config.heads,
                    config.attention_dim,
                    config.attention_dropout,
                    config.residual,
                    config.scale,
                    config.layer_norm,
                )
                for layer in range(config.attention_layers)
            )
        )
        self.out = Logit((self.num_fields + self.num_dense) * width)  # eq. 9

    def logits(self, x: Inputs) -> Tensor:
        vectors = torch.cat([x.fields, self.dense(x.dense)], dim=1)  # [B, F + Nd, D]
        return self.out(self.attention(vectors).flatten(1))
