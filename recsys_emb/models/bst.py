"""Behavior Sequence Transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import Inputs, register
from recsys_emb.models.histories import HistoryModel, padded
from recsys_emb.models.layers import MLP, DeepConfig, LayerNorm, Linear, Logit, Units


class BSTConfig(DeepConfig):
    """Options of BST."""

    hidden: Units = Field((1024, 512, 256), min_length=1, description="units of each layer of the deep network")
    transformer_layers: int = Field(1, ge=1, description="transformer layers")
    heads: int = Field(8, ge=1, description="heads of each transformer layer")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="share dropped of each part of a transformer layer")


class TransformerLayer(nn.Module):
    """Self-attention and a feed-forward network, each with residual and normalisation after it, [B, T, width] -> same.

    Chen et al. 2019, section 2.2. Columns of a head are rounded up where ``heads`` do not divide the width.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        inner = heads * -(-width // heads)
        self.heads = heads
        self.query, self.key, self.value = (Linear(width, inner, bias=False) for _ in range(3))
        self.joined = Linear(inner, width)
        self.feed_forward = nn.Sequential(Linear(width, width), nn.LeakyReLU(), Linear(width, width))
        self.norms = nn.ModuleList(LayerNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        """Only slots that are ``there``, bool [B, T], are attended to; each row has one."""
        q, k, v = (
            part(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        scores = (q @ k.transpose(2, 3)).float() * q.shape[3] ** -0.5  # [B, heads, T, T]
        weights = scores.masked_fill(~there[:, None, None], torch.finfo(torch.float32).min).softmax(3)
        attended = self.joined((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2))
        x = self.norms[0](x + self.dropout(attended))
        return self.norms[1](x + self.dropout(self.feed_forward(x)))


class HistoryTransformer(nn.Module):
    """Transformer layers over a history and the target after it, then the mean over both (Chen et al. 2019).

    Beside an item stands a learned vector of how far it lies back, which takes the place of the paper's time.

    Args:
        width: K, columns of an item.
        most: T, the longest history.
        position_dim: columns of a position.
        layers, heads, dropout: of the transformer.
    """

    def __init__(self, width: int, most: int, position_dim: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.out_features = width + position_dim
        self.position = nn.Parameter(0.01 * torch.randn(most + 1, position_dim))
        self.layers = nn.ModuleList(TransformerLayer(self.out_features, heads, dropout) for _ in range(layers))

    def forward(self, target: Tensor, history: Tensor, there: Tensor) -> Tensor:
        """target [B, K], history [B, T, K] at the end of its row, there bool [B, T] -> [B, K + position_dim]."""
        items = torch.cat([history, target[:, None]], dim=1)  # [B, T + 1, K]
        x = torch.cat([items, self.position.expand(items.shape[0], -1, -1)], dim=2)
        there = F.pad(there, (0, 1), value=True)
        for layer in self.layers:
            x = layer(x, there)
        return (x * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)


@register("bst")
class BST(HistoryModel):
    """Behavior Sequence Transformer (Chen et al. 2019): a transformer over each history and its target, then deep."""

    summary = "a transformer over the behaviour history and the target item"

    Config = BSTConfig

    def __init__(self, config: BSTConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        transformers = [
            HistoryTransformer(
                width, most, config.embedding_dim, config.transformer_layers, config.heads, config.attention_dropout
            )
            for width, most in zip(self.widths, self.lengths)
        ]
        self.transformers = nn.ModuleList(transformers)
        width = self.flat_width + sum(t.out_features for t in transformers)
        mlp = MLP(width, config.hidden, config.dropout, config.batch_norm)
        self.deep = nn.Sequential(mlp, Logit(mlp.out_features))

    def logits(self, x: Inputs) -> Tensor:
        interests = [
            transformer(group.target, *padded(group.values, group.lengths, most))
            for transformer, group, most in zip(self.transformers, self.groups(x), self.lengths)
        ]
        return self.deep(x.flat(*interests))
