"""Deep Interest Network."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import Inputs, register
from recsys_emb.models.histories import HistoryModel
from recsys_emb.models.layers import MLP, Activation, DeepConfig, Logit, TargetAttention, Units


class DINConfig(DeepConfig):
    """Options of DIN."""

    hidden: Units = Field((512, 128, 64), min_length=1, description="units of each layer of the deep network")
    activation: Activation = Field("dice", description="of the deep network")
    attention_hidden: Units = Field((64,), min_length=1, description="units of the activation unit's layers")
    attention_activation: Activation = Field("dice", description="of the activation unit")
    softmax: bool = Field(False, description="normalise the weights of a history; the paper does not")


@register("din")
class DIN(HistoryModel):
    """Deep Interest Network (Zhou et al. 2018, section 4.3): histories, weighed by the target, become interests.

    Sequences linked by ``aligned_with`` (items and their categories) are attended jointly, with their vectors and
    their targets' vectors side by side; every other sequence has an activation unit of its own.
    """

    summary = "behaviour histories weighed by the target item"

    Config = DINConfig

    def __init__(self, config: DINConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.attention = nn.ModuleList(
            TargetAttention(width, config.attention_hidden, config.attention_activation, config.softmax)
            for width in self.widths
        )
        mlp = MLP(
            self.flat_width + sum(self.widths), config.hidden, config.dropout, config.batch_norm, config.activation
        )
        self.deep = nn.Sequential(mlp, Logit(mlp.out_features))

    def logits(self, x: Inputs) -> Tensor:
        interests = [attention(*history) for attention, history in zip(self.attention, self.groups(x))]  # [B, K] each
        return self.deep(x.flat(*interests))
