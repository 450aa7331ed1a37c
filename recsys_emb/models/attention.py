"""Self-attention between the fields of a row.

B rows, F fields, E = heads * head_dim.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from recsys_emb.models.layers import Linear
from recsys_emb.native import attention as native


class MultiHeadSelfAttention(nn.Module):
    """One interacting layer of AutoInt, [B, F, in_features] -> [B, F, heads * head_dim] (Song et al. 2019, eq. 5 to 8).

    Each head attends over the fields of a row: softmax over j of <Q e_i, K e_j>, unscaled in the paper, weighs V e_j.
    The heads side by side, plus the residual, go through ReLU. The residual is projected only where widths differ.
    """

    def __init__(
        self,
        in_features: int,
        heads: int,
        head_dim: int,
        dropout: float = 0.0,
        residual: bool = True,
        scale: bool = False,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.out_features = heads * head_dim
        self.query, self.key, self.value = (Linear(in_features, self.out_features, bias=False) for _ in range(3))
        self.residual: nn.Module | None = None
        if residual:
            same = in_features == self.out_features
            self.residual = nn.Identity() if same else Linear(in_features, self.out_features, bias=False)
        self.scale = head_dim**-0.5 if scale else 1.0
        self.dropout = dropout
        self.norm = nn.LayerNorm(self.out_features) if layer_norm else None

    def forward(self, x: Tensor) -> Tensor:
        weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])  # one wide product, not three
        kept = None
        if self.training and self.dropout:
            batch, fields, _ = x.shape
            kept = F.dropout(x.new_ones(self.heads * batch, fields, fields), self.dropout)
        projected = F.linear(x, weight)
        out: Tensor
        if kept is None and native.fits(projected, self.heads):
            out = native.Attend.apply(projected, self.heads, self.scale)  # type: ignore[no-untyped-call]
        else:
            out = _Attend.apply(projected, kept, self.heads, self.scale)  # type: ignore[no-untyped-call]
        if self.residual is not None:
            out += self.residual(x)  # in place, as ReLU: no second tensor of this size
        return torch.relu_(out if self.norm is None else self.norm(out))


class _Attend(torch.autograd.Function):
    """Queries, keys and values side by side [B, F, 3 E] -> the heads' weighted sums of values [B, F, E].

    With a backward of its own because autograd copies each of three gradients from [heads, B, F, head_dim] to
    [B, F, E] before three products; here one copy and one product follow. ``kept`` [heads * B, F, F] scales the
    weights, None: not.
    """

    @staticmethod
    def forward(ctx: Any, projected: Tensor, kept: Tensor | None, heads: int, scale: float) -> Tensor:
        batch, fields, width = projected.shape
        dim = width // 3 // heads
        with torch.autocast(projected.device.type, enabled=False):
            by_head = projected.view(batch, fields, 3, heads, dim).permute(2, 3, 0, 1, 4)
            query, key, value = qkv = by_head.contiguous().view(3, heads * batch, fields, dim)  # what products need
            scores = torch.bmm(query, key.transpose(1, 2))
            if scale != 1:
                scores *= scale
            weights = torch.softmax(scores, dim=-1)
            out = torch.bmm(weights if kept is None else weights * kept.to(weights.dtype), value)
        ctx.save_for_backward(qkv, weights, kept)
        ctx.heads, ctx.scale = heads, scale
        joined = out.new_empty(batch, fields, heads * dim)  # no view, so that it can be changed in place
        joined.view(batch, fields, heads, dim).copy_(out.view(heads, batch, fields, dim).permute(1, 2, 0, 3))
        return joined

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, weights, kept = ctx.saved_tensors
        query, key, value = qkv
        batch, fields, width = grad.shape
        by_head = batch, fields, ctx.heads, width // ctx.heads
        grad = grad.reshape(by_head).permute(2, 0, 1, 3).reshape(query.shape)
        grads = torch.empty_like(qkv)
        grad_weights = torch.bmm(grad, value.transpose(1, 2))
        dropped = weights
        if kept is not None:
            kept = kept.to(weights.dtype)
            grad_weights, dropped = grad_weights * kept, weights * kept
        grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, weights.dtype)
        if ctx.scale != 1:
            grad_scores = grad_scores * ctx.scale
        torch.bmm(grad_scores, key, out=grads[0])
        torch.bmm(grad_scores.transpose(1, 2), query, out=grads[1])
        torch.bmm(dropped.transpose(1, 2), grad, out=grads[2])
        side_by_side = grads.view(3, ctx.heads, batch, fields, by_head[-1]).permute(2, 3, 0, 1, 4)
        return side_by_side.reshape(batch, fields, 3 * width), None, None, None
