"""Gated Deep Cross Network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys_emb.models.base import register
from recsys_emb.models.dcnv2 import DCNv2
from recsys_emb.models.layers import CrossNetV2


class GatedCrossNet(nn.Module):
    """Gated cross layers x_{l+1} = x_0 * (W x_l + b) * sigmoid(W' x_l) + x_l, [B, in_features] -> the same.

    The gate lets through what of a layer's interactions is worth it (Wang et al. 2023, section "gated cross network").
    With ``low_rank``, W and W' are products of two thin matrices as in DCN V2.
    """

    def __init__(self, in_features: int, num_layers: int, low_rank: int | None = None) -> None:
        super().__init__()
        self.crosses = CrossNetV2(in_features, num_layers, low_rank).layers
        self.gates = CrossNetV2(in_features, num_layers, low_rank, bias=False).layers

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for cross, gate in zip(self.crosses, self.gates):
            x = torch.addcmul(x, x0 * torch.sigmoid(gate(x)), cross(x))
        return x


@register("gdcn")
class GDCN(DCNv2):
    """GDCN (Wang et al., CIKM 2023): DCN V2 whose cross layers are gated, parallel (GDCN-P) or stacked (GDCN-S)."""

    summary = "gated cross network beside, or under, a deep network"

    cross_net = GatedCrossNet
