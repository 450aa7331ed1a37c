"""QNN-alpha."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import BatchLosses, CTRModel, Inputs, ModelConfig, register
from recsys_emb.models.layers import Linear, Logit


class QNNAlphaConfig(ModelConfig):
    """Options of QNN-alpha."""

    layers: int = Field(3, ge=1, description="quadratic layers, each doubling the degree of interactions")
    factors: int = Field(2, ge=1, description="factors that a layer multiplies its input by, whose products are added")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of factors, and of columns after a layer, dropped")


class QuadraticLayer(nn.Module):
    """x + sum over r of x * relu(W_r x + b_r), [B, width] -> the same (Li et al. 2025, arXiv 2505.17999).

    The products of x with R factors are a Khatri-Rao product; activation comes before it, not after ("mid-activation").
    In the paper heads cut x into parts, which changes the order of columns alone, since products are by column.
    """

    def __init__(self, width: int, factors: int, dropout: float) -> None:
        super().__init__()
        self.linear = Linear(width, factors * width)
        self.factors = factors
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        factors = self.dropout(F.relu(self.linear(x)))
        return torch.addcmul(x, x, factors.unflatten(1, (self.factors, -1)).sum(1))


@register("qnn_alpha")
class QNNAlpha(CTRModel):
    """QNN-alpha (Li et al. 2025, arXiv 2505.17999): quadratic layers, then one linear layer.

    In training two passes, of which dropout makes two networks, give the average of their probabilities, and each
    learns from it too ("self-ensemble loss"); without dropout they would be the same, and there is one.
    """

    summary = "quadratic layers that learn from their own ensemble"

    Config = QNNAlphaConfig

    def __init__(self, config: QNNAlphaConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        layers: list[nn.Module] = []
        for _ in range(config.layers):
            layers += [QuadraticLayer(self.flat_width, config.factors, config.dropout), nn.Dropout(config.dropout)]
        self.network = nn.Sequential(*layers, Logit(self.flat_width))
        self.passes = 2 if config.dropout else 1

    def logits(self, x: Inputs) -> Tensor:
        return self.network(x.flat())

    def logits_and_loss(self, x: Inputs, losses: BatchLosses) -> tuple[Tensor, Tensor | None]:
        if self.passes == 1:
            return self.logits(x), None
        flat = x.flat()
        a, b = self.network(flat), self.network(flat)
        both = mean_probability(a, b)
        return both, losses.distance(a, both.detach()) + losses.distance(b, both.detach())


def mean_probability(a: Tensor, b: Tensor) -> Tensor:
    """The log-odds of the mean of the probabilities whose log-odds are a and b."""
    yes = torch.logaddexp(F.logsigmoid(a), F.logsigmoid(b))
    return yes - torch.logaddexp(F.logsigmoid(-a), F.logsigmoid(-b))
