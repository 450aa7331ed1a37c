"""Self-attention between the fields of a row, on fp32 and the CPU: some two times as fast as torch's products.

B rows, F fields, E = heads * head_dim.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys_emb.native.build import library

LANES = 8


def fits(projected: Tensor, heads: int) -> bool:
    """Whether ``Attend`` takes this, on this machine."""
    if projected.device.type != "cpu" or projected.dtype != torch.float32 or torch.compiler.is_compiling():
        return False
    return projected.shape[-1] // 3 // heads % LANES == 0 and _library() is not None


class Attend(torch.autograd.Function):
    """Queries, keys and values side by side [B, F, 3 E] -> the heads' weighted sums of values [B, F, E]."""

    @staticmethod
    def forward(ctx: Any, projected: Tensor, heads: int, scale: float) -> Tensor:
        projected = projected.contiguous()
        batch, fields, width = projected.shape
        out = projected.new_empty(batch, fields, width // 3)
        padded = -(-fields // LANES) * LANES
        weights = projected.new_empty(batch * heads * fields * padded) if ctx.needs_input_grad[0] else None
        sizes = batch, fields, heads, width // 3 // heads, scale
        _library().attention_forward(
            projected.data_ptr(), out.data_ptr(), None if weights is None else weights.data_ptr(), *sizes
        )
        ctx.save_for_backward(projected, weights)
        ctx.sizes = sizes
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        projected, weights = ctx.saved_tensors
        grad, grads = grad.contiguous(), torch.empty_like(projected)
        pointers = (t.data_ptr() for t in (projected, weights, grad, grads))
        _library().attention_backward(*pointers, *ctx.sizes)
        return grads, None, None


@cache
def _library() -> Any:
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_long
        found.attention_forward.argtypes = [pointer] * 3 + [size] * 4 + [ctypes.c_float]
        found.attention_backward.argtypes = [pointer] * 4 + [size] * 4 + [ctypes.c_float]
        found.attention_forward.restype = found.attention_backward.restype = None
    return found
