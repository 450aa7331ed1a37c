"""Logistic regression."""

from __future__ import annotations

from torch import Tensor

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import CTRModel, Inputs, ModelConfig, register
from recsys_emb.models.layers import FirstOrder


@register("lr")
class LR(CTRModel):
    """Logistic regression (Richardson et al. 2007, section 5): a weight for each id and dense feature, and a bias.

    The backend holds one column per id, whatever ``embedding_dim`` says.
    """

    summary = "logistic regression"

    first_order = True

    def __init__(self, config: ModelConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.linear = FirstOrder(self.num_dense)

    @classmethod
    def embedding_width(cls, config: ModelConfig) -> int:
        return 1

    def logits(self, x: Inputs) -> Tensor:
        return self.linear(x.first_order, x.dense)
