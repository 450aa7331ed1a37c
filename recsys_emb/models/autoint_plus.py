"""AutoInt+."""

from __future__ import annotations

from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.autoint import AutoInt, AutoIntConfig
from recsys_emb.models.base import Inputs, register
from recsys_emb.models.layers import MLP, DeepConfig, Logit


class AutoIntPlusConfig(AutoIntConfig, DeepConfig):
    """Options of AutoInt+: those of AutoInt and of a deep network."""


@register("autoint_plus")
class AutoIntPlus(AutoInt):
    """AutoInt+ (Song et al. 2019, section 5.5): AutoInt and a deep network, added.

    Both see the same vectors of categorical fields. Dense features go to AutoInt as vectors of its own, as section 4.3
    has it, and to the deep network as the numbers that they are, as in the other models here.
    """

    summary = "AutoInt beside a deep network"

    Config = AutoIntPlusConfig

    def __init__(self, config: AutoIntPlusConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        mlp = MLP(self.flat_width, config.hidden, config.dropout, config.batch_norm)
        self.deep = nn.Sequential(mlp, Logit(mlp.out_features, bias=False))  # AutoInt's layer has the bias

    def logits(self, x: Inputs) -> Tensor:
        return super().logits(x) + self.deep(x.flat())
