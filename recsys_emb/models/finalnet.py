"""FinalNet."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import BatchLosses, CTRModel, Inputs, register
from recsys_emb.models.layers import BatchNorm, DeepConfig, DenseEmbedding, Linear, Logit


class FinalNetConfig(DeepConfig):
    """Options of FinalNet."""

    hidden: tuple[Annotated[int, Field(ge=2, multiple_of=2)], ...] = Field(
        (400, 400, 400), min_length=1, description="units of each layer of a block, even"
    )
    batch_norm: bool = Field(True, description="batch normalisation after each layer of a block")
    blocks: Literal[1, 2] = Field(2, description="2: one block on gated, one on plain vectors; 1: the gated one alone")
    field_gate: bool = Field(True, description="show the first block the vectors gated by each other, too")


class FieldGate(nn.Module):
    """Vectors beside themselves times gates, [B, F, D] -> [B, 2F, D] (Zhu et al. 2023, "field gate").

    A field's gate is, column by column, a linear function of all fields' vectors; it starts as the constant 1.
    """

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        self.gate = Linear(num_fields, num_fields)
        nn.init.zeros_(self.gate.weight)
        nn.init.ones_(self.gate.bias)

    def forward(self, vectors: Tensor) -> Tensor:
        gates = self.gate(vectors.transpose(1, 2)).transpose(1, 2)
        return torch.cat([vectors, vectors * gates], dim=1)


class FactorizedInteraction(nn.Module):
    """A linear layer that multiplies: [a, a * b] with [a, b] = W x + c, [B, in_features] -> [B, out_features].

    Stacked, layers double the degree of interactions each time (Zhu et al. 2023, "factorized interaction layer").
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.linear(x).chunk(2, dim=1)
        return torch.cat([a, a * b], dim=1)


def block(in_features: int, config: FinalNetConfig) -> nn.Sequential:
    """Factorized interactions, each with batch normalisation and dropout, then a logit; no activation between."""
    layers: list[nn.Module] = []
    for wide, narrow in zip([in_features, *config.hidden], config.hidden):
        layers.append(FactorizedInteraction(wide, narrow))
        if config.batch_norm:
            layers.append(BatchNorm(narrow))
        if config.dropout:
            layers.append(nn.Dropout(config.dropout))
    return nn.Sequential(*layers, Logit(config.hidden[-1]))


@register("finalnet")
class FinalNet(CTRModel):
    """FinalNet (Zhu et al., SIGIR 2023): two blocks of factorized interactions, one on gated vectors, averaged.

    In training each block also learns from the average of both ("self-distillation"). Dense features enter as value
    times a learned vector.
    """

    summary = "two multiplying networks that learn from their average"

    Config = FinalNetConfig

    def __init__(self, config: FinalNetConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.dense = DenseEmbedding(self.num_dense, config.embedding_dim)
        fields = self.num_fields + self.num_dense
        width = fields * config.embedding_dim
        self.gate = FieldGate(fields) if config.field_gate else None
        self.gated = block(2 * width if config.field_gate else width, config)
        self.plain = block(width, config) if config.blocks == 2 else None

    def by_block(self, x: Inputs) -> list[Tensor]:
        """Logits [B] of each block."""
        vectors = torch.cat([x.fields, self.dense(x.dense)], dim=1)  # [B, F + Nd, D]
        gated = vectors if self.gate is None else self.gate(vectors)
        logits = [self.gated(gated.flatten(1))]
        return logits if self.plain is None else [*logits, self.plain(vectors.flatten(1))]

    def logits(self, x: Inputs) -> Tensor:
        return torch.stack(self.by_block(x)).mean(0)

    def logits_and_loss(self, x: Inputs, losses: BatchLosses) -> tuple[Tensor, Tensor | None]:
        by_block = self.by_block(x)
        logits = torch.stack(by_block).mean(0)
        if self.plain is None:
            return logits, None
        return logits, torch.stack([losses.distance(y, logits.detach()) for y in by_block]).sum()
