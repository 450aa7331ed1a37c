"""Wide & Deep."""

from __future__ import annotations

from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import CTRModel, Inputs, register
from recsys_emb.models.layers import MLP, DeepConfig, FirstOrder, Logit


@register("wide_deep")
class WideDeep(CTRModel):
    """Wide & Deep (Cheng et al. 2016, section 3): a linear model and a deep network, trained jointly (eq. 3).

    The wide part has the features as they are; crosses chosen by hand can be prepared as fields of their own.
    """

    summary = "linear model beside a deep network"

    Config = DeepConfig
    first_order = True

    def __init__(self, config: DeepConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.wide = FirstOrder(self.num_dense)
        mlp = MLP(self.flat_width, config.hidden, config.dropout, config.batch_norm)
        self.deep = nn.Sequential(mlp, Logit(mlp.out_features, bias=False))  # the wide part has the bias

    def logits(self, x: Inputs) -> Tensor:
        return self.wide(x.first_order, x.dense) + self.deep(x.flat())
