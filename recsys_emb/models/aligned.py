"""Linear layers of odd widths on the CPU: products whose results begin every row at a multiple of 64 bytes.

Where rows of a result are not aligned, as with the 429 columns of Criteo's 26 vectors of 16 and 13 dense features, the
same product took 1.5 times as long. B rows, I and O columns in and out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FLOATS = 16  # of 64 bytes
LEAST = 4 * FLOATS
"""Columns below which a product is too small to gain."""


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether ``AlignedLinear`` is faster than ``F.linear`` for x [..., I] and weight [O, I]."""
    if x.device.type != "cpu" or x.dim() != 2 or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    same = x.dtype == weight.dtype == torch.float32
    return same and any(width >= LEAST and width % FLOATS for width in weight.shape)


class AlignedLinear(torch.autograd.Function):
    """x [B, I], weight [O, I], bias [O] or None -> x weight^T + bias, [B, O]; rows may be further apart than O."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        out = _rows(x, weight.shape[0])
        return torch.mm(x, weight.t(), out=out) if bias is None else torch.addmm(bias, x, weight.t(), out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            torch.mm(grad, weight, out=_rows(grad, weight.shape[1])) if wants_x else None,
            grad.t() @ x if wants_weight else None,
            grad.sum(0) if wants_bias else None,
        )


def _rows(like: Tensor, width: int) -> Tensor:
    """[B, width] for a result, aligned where it is wide enough."""
    apart = -(-width // FLOATS) * FLOATS if width >= LEAST else width
    return like.new_empty(len(like), apart)[:, :width]
