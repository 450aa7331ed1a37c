"""Deep & Cross Network V2."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.fields import FieldEmbedding
from recsys_emb.models.base import CTRModel, Inputs, register
from recsys_emb.models.layers import MLP, CrossNetV2, DeepConfig, Logit


class DCNv2Config(DeepConfig):
    """Options of DCNv2."""

    cross_layers: int = Field(3, ge=1, description="cross layers; l of them reach interactions of degree l + 1")
    low_rank: int | None = Field(None, ge=1, description="rank of the cross matrices; absent: full")
    structure: Literal["parallel", "stacked"] = Field(
        "parallel", description="parallel: cross and deep side by side; stacked: deep on top of cross"
    )


@register("dcnv2")
class DCNv2(CTRModel):
    """DCN V2 (Wang et al. 2021, section 3): cross layers and a deep network, side by side or stacked (figure 1)."""

    summary = "cross network beside, or under, a deep network"

    Config = DCNv2Config
    cross_net: ClassVar[type[nn.Module]] = CrossNetV2
    """Made of a width, how many layers and their rank; [B, width] -> the same."""

    def __init__(self, config: DCNv2Config, schema: DatasetSchema, embedding: FieldEmbedding) -> None:
        super().__init__(config, schema, embedding)
        width = self.flat_width
        self.stacked = config.structure == "stacked"
        self.cross = self.cross_net(width, config.cross_layers, config.low_rank)
        self.deep = MLP(width, config.hidden, config.dropout, config.batch_norm)
        self.deep_logit = Logit(self.deep.out_features)
        if not self.stacked:
            # Two layers whose results are added are one layer on both inputs side by side, without the copy.
            self.cross_logit = Logit(width, bias=False)

    def logits(self, x: Inputs) -> Tensor:
        x0 = x.flat()  # [B, F*D + Nd]
        crossed = self.cross(x0)  # [B, F*D + Nd]
        if self.stacked:
            return self.deep_logit(self.deep(crossed))
        return self.cross_logit(crossed) + self.deep_logit(self.deep(x0))
