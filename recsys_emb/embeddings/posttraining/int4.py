"""Rows of 4-bit codes, two in a byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.posttraining._affine import AffineConfig, AffineRows
from recsys_emb.embeddings.posttraining.base import register

CLIPS = tuple(1 - i / 20 for i in range(11))


class Int4Config(AffineConfig):
    """Options of ``int4``."""

    scales: Literal["fp32", "fp16"] = Field(
        "fp16", description="type of a row's scale and bias; fp32 takes 4 bytes a row more and gains little"
    )
    clip_search: bool = Field(
        True, description="each row's range may shrink to half where that lowers its squared error; costs no bytes"
    )


@register("int4")
class Int4Rows(AffineRows):
    """N (ceil(D / 2) + 4) bytes by default, FBGEMM's 4-bit row-wise form (formulas in ``_affine.py``).

    The even column is the low half of a byte.
    """

    summary = "rows of 4-bit codes, each with its scale and bias"
    Config = Int4Config
    bits = 4

    @staticmethod
    def pack(codes: Tensor) -> Tensor:
        codes = F.pad(codes, (0, codes.shape[1] % 2))
        return codes[:, 0::2] | codes[:, 1::2] << 4

    @staticmethod
    def unpack(packed: Tensor, dim: int) -> Tensor:
        if torch.compiler.is_exporting():
            packed = packed.int()  # onnx has no arithmetic on bytes
        return torch.stack([packed & 15, packed >> 4], dim=2).flatten(1)[:, :dim]

    @classmethod
    def clips(cls, config: Any) -> Sequence[float]:
        return CLIPS if config.clip_search else (1.0,)
