"""Rows of b-bit codes with a scale of their own, in the form of FBGEMM's row-wise quantised tables.

A row x [D] is stored as codes q in 0..L, L = 2^b - 1, and gives x' = scale * q + bias.

    affine     bias = min(x), scale = (max(x) - bias) / L
    symmetric  scale = max(|x|) / (2^(b-1) - 1), bias = -scale * 2^(b-1)
    q = clip(round((x - bias) / scale), 0, L)

(Khudia et al., "FBGEMM: Enabling High-Performance Low-Precision Deep Learning Inference", 2021, and the fused
row-wise tables of that library, whose formulas the affine form shares.)
Scale and bias are rounded to their stored type before q is computed, so |x' - x| <= scale / 2 for every x from bias to
bias + L scale. A row's ends may lie outside: rounding to fp16 moves scale and bias by up to 2^-11 of themselves, or
2^-25 where they are below 2^-14, so an end may be missed by L (2^-11 scale + 2^-25) + 2^-11 |bias| + 2^-25 more. A
scale below 2^-25 becomes 0 in fp16: the row is its bias.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, GroupSpec
from recsys_emb.embeddings.posttraining._by_row import ByRow
from recsys_emb.embeddings.posttraining.base import saturated

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


class AffineConfig(BackendConfig):
    """What int8 and int4 have in common."""

    range: Literal["affine", "symmetric"] = Field(
        "affine",
        description="affine: from the row's least to its largest value, a scale and a bias per row; symmetric: around "
        "zero, a scale alone, so fewer bytes and coarser steps",
    )
    scales: Literal["fp32", "fp16"]


class AffineRows(ByRow[AffineConfig]):
    """Quantised rows: N (D b / 8 + scale and bias) bytes; D is filled up to whole bytes."""

    bits: ClassVar[int]
    codes: Tensor
    scale: Tensor

    def __init__(self, spec: GroupSpec, config: AffineConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        n = spec.num_embeddings
        width = -(-spec.embedding_dim * self.bits // 8)
        dtype = DTYPES[config.scales]
        self.register_buffer("codes", torch.empty(n, width, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.empty(n, dtype=dtype, device=device))
        if config.range == "affine":
            self.register_buffer("bias", torch.empty(n, dtype=dtype, device=device))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows = self.rows_of(ids, counts)
        codes = self.unpack(self.codes.index_select(0, rows), self.spec.embedding_dim)
        scale = self.scale.index_select(0, rows).float()[:, None]
        if self.config.range == "affine":
            bias = self.array("bias").index_select(0, rows).float()[:, None]
        else:
            bias = -scale * 2 ** (self.bits - 1)
        return torch.addcmul(bias, codes.float(), scale)

    @staticmethod
    @abstractmethod
    def pack(codes: Tensor) -> Tensor:
        """uint8 [n, D] codes -> uint8 [n, bytes of a row]."""

    @staticmethod
    @abstractmethod
    def unpack(packed: Tensor, dim: int) -> Tensor:
        """uint8 [n, bytes of a row] -> uint8 [n, dim]."""

    @classmethod
    def clips(cls, config: Any) -> Sequence[float]:
        """Shares of a row's range to try; the one of least squared error is taken."""
        return (1.0,)

    def store(self, place: slice, rows: Tensor) -> None:
        config = self.config
        symmetric, dtype = config.range == "symmetric", DTYPES[config.scales]
        codes, scale, bias = quantise(rows, self.bits, symmetric, dtype, self.clips(config))
        self.codes[place] = self.pack(codes)
        self.scale[place] = scale
        if not symmetric:
            self.array("bias")[place] = bias


def quantise(
    rows: Tensor, bits: int, symmetric: bool, dtype: torch.dtype, clips: Sequence[float] = (1.0,)
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [n, D], scale and bias [n] in float32, as rounded to ``dtype``, of rows float32 [n, D].

    Args:
        rows: what to quantise.
        bits: of a code.
        symmetric: around zero.
        dtype: of scale and bias.
        clips: shares of each row's range to try (Guan et al., "Post-Training 4-bit Quantization on Embedding Tables",
            2019, section 3); the row takes the one of the least squared error.
    """
    best = None
    for clip in clips:
        scale, bias = _scales(rows, bits, symmetric, dtype, clip)
        codes = ((rows - bias) / scale).round_().clamp_(0, 2**bits - 1)
        error = torch.addcmul(bias, codes, scale).sub_(rows).square_().sum(1, keepdim=True)
        if best is None:
            best = codes, scale, bias, error
        else:
            better = error < best[3]
            old = best
            new = (codes, scale, bias, error)
            best = tuple(torch.where(better, a, b) for a, b in zip(new, old))  # type: ignore[assignment]
    assert best is not None
    codes, scale, bias, _ = best
    return codes.to(torch.uint8), scale[:, 0], bias[:, 0]


def _scales(rows: Tensor, bits: int, symmetric: bool, dtype: torch.dtype, clip: float) -> tuple[Tensor, Tensor]:
    """float32 [n, 1] each."""
    if symmetric:
        scale = _rounded(rows.abs().amax(1, keepdim=True) * (clip / (2 ** (bits - 1) - 1)), dtype)
        scale[scale == 0] = 1
        return scale, -scale * 2 ** (bits - 1)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    cut = (high - low) * ((1 - clip) / 2)
    bias = _rounded(low + cut, dtype)
    scale = _rounded((high - cut - bias) / (2**bits - 1), dtype)
    scale[scale <= 0] = 1  # a row of one value: all codes 0
    return scale, bias


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    return saturated(x, dtype).float()
