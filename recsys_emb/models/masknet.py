"""MaskNet."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import CTRModel, Inputs, register
from recsys_emb.models.layers import MLP, DeepConfig, DenseEmbedding, LayerNorm, Linear, Logit


class MaskNetConfig(DeepConfig):
    """Options of MaskNet."""

    structure: Literal["parallel", "serial"] = Field(
        "parallel",
        description="parallel: blocks side by side under the deep network; serial: a block for each layer of it",
    )
    blocks: int = Field(3, ge=1, description="blocks of the parallel structure")
    block_units: int = Field(64, ge=1, description="units of each block of the parallel structure")
    reduction: float = Field(2.0, gt=0, description="units of a mask's inner layer, as a multiple of what it masks")

    @model_validator(mode="after")
    def _serial_blocks_have_their_own_norm(self) -> MaskNetConfig:
        if self.structure == "serial" and self.batch_norm:
            raise ValueError("batch_norm has no place in the serial structure; leave it out")
        return self


class VectorNorm(nn.Module):
    """Layer normalisation of each field's vector, with a gain and a shift of its own, [B, F, D] -> the same."""

    def __init__(self, num_fields: int, embedding_dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(embedding_dim, elementwise_affine=False)
        self.gain = nn.Parameter(torch.ones(num_fields, embedding_dim))
        self.shift = nn.Parameter(torch.zeros(num_fields, embedding_dim))

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.addcmul(self.shift, self.norm(vectors), self.gain)


class MaskBlock(nn.Module):
    """relu(norm(W (mask * h))), the mask an MLP of the embedding (Wang et al. 2021, section 3.2 and 3.3).

    Args:
        embedded: columns of the embedding, flat.
        in_features: columns of h, what is masked.
        out_features: of the block.
        reduction: units of the mask's inner layer, as a multiple of ``in_features``.
        dropout: share of units dropped at the end.
    """

    def __init__(
        self, embedded: int, in_features: int, out_features: int, reduction: float, dropout: float = 0.0
    ) -> None:
        super().__init__()
        inner = max(1, round(reduction * in_features))
        self.mask = nn.Sequential(MLP(embedded, [inner]), Linear(inner, in_features))
        linear = Linear(in_features, out_features, bias=False)
        self.hidden = nn.Sequential(linear, LayerNorm(out_features), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, embedded: Tensor, h: Tensor) -> Tensor:
        """embedded [B, embedded] and h [B, in_features] -> [B, out_features]."""
        return self.hidden(self.mask(embedded) * h)


@register("masknet")
class MaskNet(CTRModel):
    """MaskNet (Wang et al. 2021, section 3): blocks that multiply hidden layers by masks made of the embedding.

    The first blocks mask the normalised vectors. Dense features enter as value times a learned vector.
    """

    summary = "hidden layers masked by functions of the embedding"

    Config = MaskNetConfig

    def __init__(self, config: MaskNetConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.dense = DenseEmbedding(self.num_dense, config.embedding_dim)
        fields = self.num_fields + self.num_dense
        width = fields * config.embedding_dim
        self.norm = VectorNorm(fields, config.embedding_dim)
        self.serial = config.structure == "serial"
        into = [width, *config.hidden[:-1]] if self.serial else [width] * config.blocks
        out = config.hidden if self.serial else (config.block_units,) * config.blocks
        self.blocks = nn.ModuleList(
            MaskBlock(width, wide, narrow, config.reduction, config.dropout) for wide, narrow in zip(into, out)
        )
        deep = [] if self.serial else [MLP(sum(out), config.hidden, config.dropout, config.batch_norm)]
        self.out = nn.Sequential(*deep, Logit(config.hidden[-1]))

    def logits(self, x: Inputs) -> Tensor:
        vectors = torch.cat([x.fields, self.dense(x.dense)], dim=1)  # [B, F + Nd, D]
        embedded, h = vectors.flatten(1), self.norm(vectors).flatten(1)  # [B, (F + Nd) * D]
        if self.serial:
            for block in self.blocks:
                h = block(embedded, h)
            return self.out(h)
        return self.out(torch.cat([block(embedded, h) for block in self.blocks], dim=1))
