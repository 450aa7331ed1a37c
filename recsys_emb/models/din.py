"""Deep Interest Network."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel, Inputs, ModelConfig, model_registry, register
from recsys_emb.models.layers import MLP, Activation, DeepConfig, Logit, TargetAttention, Units


class DINConfig(DeepConfig):
    """Options of DIN."""

    hidden: Units = Field((512, 128, 64), min_length=1, description="units of each layer of the deep network")
    activation: Activation = Field("dice", description="of the deep network")
    attention_hidden: Units = Field((64,), min_length=1, description="units of the activation unit's layers")
    attention_activation: Activation = Field("dice", description="of the activation unit")
    softmax: bool = Field(False, description="normalise the weights of a history; the paper does not")


@register("din")
class DIN(CTRModel):
    """Deep Interest Network (Zhou et al. 2018, section 4.3): histories, weighed by the target, become interests.

    Sequences linked by ``aligned_with`` (items and their categories) are attended jointly, with their vectors and
    their targets' vectors side by side; every other sequence has an activation unit of its own.
    """

    summary = "behaviour histories weighed by the target item"

    Config = DINConfig
    uses_sequences = True

    def __init__(self, config: DINConfig, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        self.histories = aligned_groups(schema)
        target = {s.name: embedding.pooled_keys.index(s.target) for s in schema.sequences}
        self.targets = [[target[key] for key in keys] for keys in self.histories]
        self.attention = nn.ModuleList(
            TargetAttention(
                len(keys) * config.embedding_dim, config.attention_hidden, config.attention_activation, config.softmax
            )
            for keys in self.histories
        )
        width = self.flat_width + len(schema.sequences) * config.embedding_dim
        mlp = MLP(width, config.hidden, config.dropout, config.batch_norm, config.activation)
        self.deep = nn.Sequential(mlp, Logit(mlp.out_features))

    @classmethod
    def check(cls, config: ModelConfig, schema: DatasetSchema) -> None:
        if not schema.sequences:
            others = [name for name in model_registry.names() if not model_registry.get(name).uses_sequences]
            raise UserError(
                f"model.name: {cls.name} needs a sequence field, but the dataset has none; use {', '.join(others)}"
            )

    def logits(self, x: Inputs) -> Tensor:
        interests = []
        for attention, keys, targets in zip(self.attention, self.histories, self.targets):
            target = torch.cat([x.fields[:, t] for t in targets], dim=1)  # [B, K], K = D for each key
            history = torch.cat([x.sequences[key].values() for key in keys], dim=1)  # [n, K]
            interests.append(attention(target, history, x.sequences[keys[0]].lengths()))  # [B, K]
        return self.deep(x.flat(*interests))


def aligned_groups(schema: DatasetSchema) -> list[list[str]]:
    """Names of the sequence fields, those that ``aligned_with`` links together."""
    groups: list[list[str]] = []
    for field in schema.sequences:
        linked = next((g for g in groups if field.aligned_with in g), None)
        if linked is None:
            groups.append([field.name])
        else:
            linked.append(field.name)
    return groups
