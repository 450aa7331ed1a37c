"""FCN, also known as DCNv3."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import BatchLosses, CTRModel, Inputs, ModelConfig, register
from recsys_emb.models.layers import DenseEmbedding, LayerNorm, Linear, Logit


class FCNConfig(ModelConfig):
    """Options of FCN."""

    exponential_layers: int = Field(4, ge=1, description="layers that double the degree of interactions each")
    linear_layers: int = Field(4, ge=1, description="layers that raise the degree of interactions by one each")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of columns dropped after each exponential layer")
    linear_dropout: float = Field(0.3, ge=0, lt=1, description="share of columns dropped after each linear layer")


class SelfMaskedCrossNet(nn.Module):
    """Cross layers of half the parameters, then a logit: [B, width] -> float32 [B] (Li et al. 2024).

    x_{l+1} = y * ([c, c * relu(norm(c))] + b) + x_l with c = W x_l of half the width, the second half being c masked by
    itself. y is x_0 in a linear network and x_l in an exponential one, which so reaches degree 2^l. The biases are
    added as in the authors' code.
    """

    def __init__(self, width: int, num_layers: int, dropout: float, exponential: bool) -> None:
        super().__init__()
        half = (width + 1) // 2
        self.crosses = nn.ModuleList(Linear(width, half, bias=False) for _ in range(num_layers))
        self.norms = nn.ModuleList(LayerNorm(half) for _ in range(num_layers))
        self.biases = nn.ParameterList(torch.zeros(width) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)
        self.exponential = exponential
        self.out = Logit(width)

    def forward(self, x0: Tensor) -> Tensor:
        x, width = x0, x0.shape[1]
        for cross, norm, bias in zip(self.crosses, self.norms, self.biases):
            c = cross(x)
            both = torch.cat([c, c * F.relu(norm(c))], dim=1)[:, :width]  # of an odd width the last column has no twin
            x = self.dropout((x if self.exponential else x0) * (both + bias) + x)
        return self.out(x)


@register("fcn")
class FCN(CTRModel):
    """FCN (Li et al. 2024, arXiv 2407.13349, first called DCNv3): an exponential and a linear cross network, averaged.

    In training a network that is worse than the average learns from the labels on its own too, the more the worse it is
    (Tri-BCE; the weight is not held constant in the gradient, as in the authors' code). Vectors are split in halves,
    so that c multiplies the first and masked c the second half of each. Dense features enter as value times a vector.
    """

    summary = "exponential and linear cross networks, no deep one"

    Config = FCNConfig

    def __init__(self, config: FCNConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.dense = DenseEmbedding(self.num_dense, config.embedding_dim)
        width = (self.num_fields + self.num_dense) * config.embedding_dim
        self.exponential = SelfMaskedCrossNet(width, config.exponential_layers, config.dropout, exponential=True)
        self.linear = SelfMaskedCrossNet(width, config.linear_layers, config.linear_dropout, exponential=False)

    def by_network(self, x: Inputs) -> tuple[Tensor, Tensor]:
        """Logits [B] of both."""
        vectors = torch.cat([x.fields, self.dense(x.dense)], dim=1)  # [B, F + Nd, D]
        halves = torch.cat([half.flatten(1) for half in vectors.tensor_split(2, dim=2)], dim=1)
        return self.exponential(halves), self.linear(halves)

    def logits(self, x: Inputs) -> Tensor:
        exponential, linear = self.by_network(x)
        return 0.5 * (exponential + linear)

    def logits_and_loss(self, x: Inputs, losses: BatchLosses) -> tuple[Tensor, Tensor]:
        networks = self.by_network(x)
        logits = 0.5 * (networks[0] + networks[1])
        whole, more = losses.loss(logits), []
        for own in (losses.loss(y) for y in networks):
            more.append(own * F.relu(own - whole) / max(losses.rows, 1))  # the weight is a difference of means
        return logits, more[0] + more[1]
