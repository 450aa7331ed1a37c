"""DeepFM."""

from __future__ import annotations

from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import CTRModel, Inputs, register
from recsys_emb.models.layers import MLP, DeepConfig, DenseEmbedding, FirstOrder, FMInteraction, Logit


@register("deepfm")
class DeepFM(CTRModel):
    """DeepFM (Guo et al. 2017, section 2): a factorisation machine and a deep network on the same vectors (eq. 1).

    Dense features enter the machine as value times a learned vector, the network as they are.
    """

    summary = "factorisation machine beside a deep network"

    Config = DeepConfig
    first_order = True

    def __init__(self, config: DeepConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.linear = FirstOrder(self.num_dense)
        self.dense = DenseEmbedding(self.num_dense, config.embedding_dim)
        self.interaction = FMInteraction()
        mlp = MLP(self.flat_width, config.hidden, config.dropout, config.batch_norm)
        self.deep = nn.Sequential(mlp, Logit(mlp.out_features, bias=False))  # the linear part has the bias

    def logits(self, x: Inputs) -> Tensor:
        fm = self.linear(x.first_order, x.dense) + self.interaction(x.fields, self.dense(x.dense))  # [B]
        return fm + self.deep(x.flat())
