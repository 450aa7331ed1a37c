"""FinalMLP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel, Inputs, ModelConfig, register
from recsys_emb.models.layers import MLP, DeepConfig, Linear, Units


class FinalMLPConfig(DeepConfig):
    """Options of FinalMLP; ``hidden`` is its first stream."""

    second_hidden: Units | None = Field(None, min_length=1, description="units of the second stream; absent: as hidden")
    gate_hidden: Units = Field((64,), description="units of each stream's gate")
    first_context: tuple[str, ...] = Field((), description="fields that gate the first stream; none: learned constants")
    second_context: tuple[str, ...] = Field((), description="fields that gate the second stream; none: as above")
    heads: int = Field(1, ge=1, description="parts of both streams' outputs that are multiplied apart from each other")

    @property
    def streams(self) -> tuple[Units, Units]:
        """Units of both."""
        return self.hidden, self.second_hidden or self.hidden

    @model_validator(mode="after")
    def _heads_divide(self) -> FinalMLPConfig:
        for units in self.streams:
            if units[-1] % self.heads:
                raise ValueError(f"heads {self.heads} must divide the last of each stream's units, but not {units[-1]}")
        return self


class FeatureGate(nn.Module):
    """Gates of a stream's inputs, 2 sigmoid(MLP(context)), so that they start near 1 ("stream-specific selection").

    Args:
        fields: positions of the fields whose vectors are the context; none: a learned constant.
        embedding_dim: D.
        hidden: units of the MLP.
        width: how many inputs there are.
    """

    def __init__(self, fields: Sequence[int], embedding_dim: int, hidden: Sequence[int], width: int) -> None:
        super().__init__()
        self.fields = list(fields)
        # Not zero: behind ReLU a constant of zero would never learn.
        self.constant = None if fields else nn.Parameter(0.01 * torch.randn(embedding_dim))
        mlp = MLP(embedding_dim * max(1, len(fields)), hidden)
        self.mlp = nn.Sequential(mlp, Linear(mlp.out_features, width))

    def forward(self, vectors: Tensor) -> Tensor:
        """Vectors [B, F, D] -> [B, width], or [1, width] of a constant."""
        if self.constant is not None:
            return 2 * torch.sigmoid(self.mlp(self.constant[None]))
        return 2 * torch.sigmoid(self.mlp(torch.cat([vectors[:, i] for i in self.fields], dim=1)))


class BilinearFusion(nn.Module):
    """Logit of two vectors, b + w1 x + w2 y + sum over heads of x_h W_h y_h: [B, X] and [B, Y] -> float32 [B].

    Mao et al. 2023, "stream-level fusion". ``heads`` cuts x and y into as many parts, each with a matrix of its own.
    """

    def __init__(self, first: int, second: int, heads: int) -> None:
        super().__init__()
        self.linear = Linear(first + second, 1)
        self.weight = nn.Parameter(torch.empty(heads, first // heads, second // heads))
        for matrix in self.weight:
            nn.init.xavier_normal_(matrix.data)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # a logit, never in bf16
            x, y = x.float(), y.float()
            heads = self.weight.shape[0]
            left, right = x.unflatten(1, (heads, -1)).transpose(0, 1), y.unflatten(1, (heads, -1)).transpose(0, 1)
            products = ((left @ self.weight) * right).sum((0, 2))  # [B]
            return self.linear(torch.cat([x, y], dim=1)).squeeze(-1) + products


@register("finalmlp")
class FinalMLP(CTRModel):
    """FinalMLP (Mao et al., AAAI 2023): two deep networks, each on inputs gated its own way, fused by a bilinear form.

    The gates' context comes from the vectors that the streams have, not from further tables, so that all vectors are
    part of the memory budget.
    """

    summary = "two gated deep networks, multiplied"

    Config = FinalMLPConfig

    def __init__(self, config: FinalMLPConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        contexts = [
            [embedding.pooled_keys.index(k) for k in keys] for keys in (config.first_context, config.second_context)
        ]
        self.gates = nn.ModuleList(
            FeatureGate(fields, config.embedding_dim, config.gate_hidden, self.flat_width) for fields in contexts
        )
        self.streams = nn.ModuleList(
            MLP(self.flat_width, units, config.dropout, config.batch_norm) for units in config.streams
        )
        self.fusion = BilinearFusion(config.streams[0][-1], config.streams[1][-1], config.heads)

    @classmethod
    def check(cls, config: ModelConfig, schema: DatasetSchema) -> None:
        assert isinstance(config, FinalMLPConfig)
        known = [f.name for f in schema.embedded]
        for option in ("first_context", "second_context"):
            for name in getattr(config, option):
                if name not in known:
                    raise UserError(f"model.{option}: the dataset has no field {name!r}; it has {', '.join(known)}")

    def logits(self, x: Inputs) -> Tensor:
        flat = x.flat()  # [B, F*D + Nd]
        first, second = (stream(flat * gate(x.fields)) for stream, gate in zip(self.streams, self.gates))
        return self.fusion(first, second)
