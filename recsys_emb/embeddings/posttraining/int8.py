"""Rows of 8-bit codes."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.posttraining._affine import AffineConfig, AffineRows
from recsys_emb.embeddings.posttraining.base import register


class Int8Config(AffineConfig):
    """Options of ``int8``."""

    scales: Literal["fp32", "fp16"] = Field(
        "fp32", description="type of a row's scale and bias; fp16 saves 4 bytes a row and loses little"
    )


@register("int8")
class Int8Rows(AffineRows):
    """N (D + 8) bytes by default, FBGEMM's fused 8-bit row-wise form (formulas in ``_affine.py``)."""

    summary = "rows of 8-bit codes, each with its scale and bias"
    Config = Int8Config
    bits = 8

    @staticmethod
    def pack(codes: Tensor) -> Tensor:
        return codes

    @staticmethod
    def unpack(packed: Tensor, dim: int) -> Tensor:
        return packed
