"""Layers that CTR models share.

B rows, F fields, Nd dense features, D = ``embedding_dim``. Every layer works under autocast: products run in the lower
precision, statistics and logits in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, reduce
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.models.aligned import AlignedLinear, pays
from recsys_emb.models.base import ModelConfig

Units = tuple[Annotated[int, Field(ge=1)], ...]
Activation = Literal["relu", "dice"]


class DeepConfig(ModelConfig):
    """Options of a model with a deep network."""

    hidden: Units = Field((400, 400, 400), min_length=1, description="units of each layer of the deep network")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of units dropped after each layer of the deep network")
    batch_norm: bool = Field(False, description="batch normalisation before each activation of the deep network")


class Rounded:
    """A layer's parameters as autocast rounds them, kept from one prediction to the next until they change.

    Few rows are predicted in less time than autocast takes to round the weights again. Only for parameters that are not
    trained any more: torch does not count the changes that a fused optimizer makes.
    """

    def __init__(self) -> None:
        self._parameters: list[Tensor] = []  # held, so that no other tensor can have their addresses
        self._state: list[Any] = []
        self._kept: tuple[Tensor, Tensor | None]

    def of(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in ``dtype``."""
        parameters = [weight] if bias is None else [weight, bias]
        if any(p.is_inference() for p in parameters):  # nobody counts their changes
            return weight.to(dtype), None if bias is None else bias.to(dtype)
        state = [dtype, *((p.data_ptr(), p._version) for p in parameters)]
        if state != self._state:
            self._kept = weight.to(dtype), None if bias is None else bias.to(dtype)
            self._parameters, self._state = parameters, state
        return self._kept


class Linear(nn.Linear):
    """A linear layer that starts from Xavier-normal weights and zero bias, what CTR papers use."""

    def reset_parameters(self) -> None:
        nn.init.xavier_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        served = torch.is_inference_mode_enabled() and not self.weight.requires_grad
        if served and torch.is_autocast_enabled(x.device.type):
            return F.linear(x, *self._rounded.of(self.weight, self.bias, torch.get_autocast_dtype(x.device.type)))
        if pays(x, self.weight):
            return AlignedLinear.apply(x, self.weight, self.bias)
        return super().forward(x)

    @cached_property
    def _rounded(self) -> Rounded:
        return Rounded()


class Logit(Linear):
    """The last layer, [B, in_features] -> float32 [B]. Never in bf16: its 8 bits would tie predictions."""

    def __init__(self, in_features: int, bias: bool = True) -> None:
        super().__init__(in_features, 1, bias)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float()).squeeze(-1)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation in float32; a batch of fewer than two rows has no variance and uses the running one.

    ``total`` sums a tensor over the processes that hold parts of a batch, with its gradient; None: one holds it all.
    """

    total: Callable[[Tensor], Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.total is not None:
            return self._over_processes(x.float(), self.total)
        stats = (self.running_mean, self.running_var, self.weight, self.bias)
        return F.batch_norm(x.float(), *stats, self.training and len(x) > 1, self.momentum or 0.0, self.eps)

    def _over_processes(self, x: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """The same from sums over all processes' rows."""
        rows = float(total(x.new_tensor(len(x))))
        if rows > 1:
            mean = total(x.sum(0)) / rows
            var = total((x - mean).square().sum(0)) / rows
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum or 0.0)  # type: ignore[union-attr]
                self.running_var.lerp_(var * (rows / (rows - 1)), self.momentum or 0.0)  # type: ignore[union-attr]
        else:
            mean, var = self.running_mean, self.running_var  # type: ignore[assignment]
        out = (x - mean) * torch.rsqrt(var + self.eps)
        return out if self.weight is None else out * self.weight + self.bias


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class Dice(nn.Module):
    """The data-adaptive activation of DIN (Zhou et al. 2018, eq. 3), [..., units] -> the same shape.

    f(s) = p s + (1 - p) alpha s with p = sigmoid((s - E[s]) / sqrt(Var[s] + eps)), alpha learned, 0 at the start.
    E and Var are of the batch in training and running averages after it.
    """

    def __init__(self, units: int, eps: float = 1e-8) -> None:
        super().__init__()
        self.norm = BatchNorm(units, eps=eps, affine=False)
        self.alpha = nn.Parameter(torch.zeros(units))

    def forward(self, s: Tensor) -> Tensor:
        p = torch.sigmoid(self.norm(s))
        return s * (self.alpha + (1 - self.alpha) * p)


class MLP(nn.Sequential):
    """Linear, batch normalisation, activation, dropout for each of ``hidden``; [B, in_features] -> [B, hidden[-1]]."""

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int],
        dropout: float = 0.0,
        batch_norm: bool = False,
        activation: Activation = "relu",
    ) -> None:
        layers: list[nn.Module] = []
        for wide, narrow in zip([in_features, *hidden], hidden):
            layers.append(Linear(wide, narrow))
            if batch_norm:
                layers.append(BatchNorm(narrow))
            layers.append(Dice(narrow) if activation == "dice" else nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        super().__init__(*layers)
        self.out_features = hidden[-1] if hidden else in_features


class DenseEmbedding(nn.Module):
    """Dense features as fields: value times a learned vector, [B, Nd] -> [B, Nd, D]."""

    def __init__(self, num_dense: int, embedding_dim: int, std: float = 0.01) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(num_dense, embedding_dim))

    def forward(self, dense: Tensor) -> Tensor:
        return dense[:, :, None] * self.weight


class FirstOrder(nn.Module):
    """Global bias, plus each id's own weight, plus a weight for each dense feature."""

    def __init__(self, num_dense: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_dense))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, first_order: Tensor, dense: Tensor) -> Tensor:
        """first_order [B, F] from the backend and dense [B, Nd] -> [B]."""
        return self.bias + first_order.sum(dim=1) + (dense * self.weight).sum(dim=1)


class FMInteraction(nn.Module):
    """Second-order factorisation machine: the sum of all dot products of two different vectors of a row.

    Rendle 2010, eq. 1 in the linear-time form of lemma 3.1: ((sum of v)^2 - sum of v^2) / 2, summed over D.
    """

    def forward(self, *blocks: Tensor) -> Tensor:
        """Vectors [B, any number, D] in one or more blocks -> [B]."""
        total = reduce(torch.add, (block.sum(dim=1) for block in blocks))  # [B, D]
        squares = reduce(torch.add, (block.square().sum(dim=1) for block in blocks))  # [B, D]
        return 0.5 * (total * total - squares).sum(dim=1)


class DotInteraction(nn.Module):
    """Dot products of all pairs of vectors, [B, F, D] -> [B, F (F - 1) / 2] (Naumov et al. 2019, section 2.5)."""

    pairs: Tensor  # int64 [F (F - 1) / 2], positions in a flattened [F, F]

    def __init__(self, num_fields: int) -> None:
        super().__init__()
        i, j = torch.tril_indices(num_fields, num_fields, offset=-1)
        self.register_buffer("pairs", i * num_fields + j, persistent=False)
        self.out_features = len(i)

    def forward(self, vectors: Tensor) -> Tensor:
        dots = vectors @ vectors.transpose(1, 2)  # [B, F, F]
        return dots.flatten(1).index_select(1, self.pairs)


class CrossNetV2(nn.Module):
    """Cross layers x_{l+1} = x_0 * (W x_l + b) + x_l, [B, in_features] -> the same (Wang et al. 2021, eq. 1).

    With ``low_rank`` r, W = U V^T for U and V of [in_features, r] (eq. 2).
    """

    def __init__(self, in_features: int, num_layers: int, low_rank: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Linear(in_features, in_features, bias)
            if low_rank is None
            else nn.Sequential(Linear(in_features, low_rank, bias=False), Linear(low_rank, in_features, bias))
            for _ in range(num_layers)
        )

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.layers:
            x = torch.addcmul(x, x0, layer(x))
        return x


class TargetAttention(nn.Module):
    """DIN's local activation unit and weighted sum pooling (Zhou et al. 2018, eq. 2), on jagged histories.

    An MLP of [q, k, q - k, q * k] weighs each past item k for the target q. The weights are not normalised, so their
    sum tells how strong an interest is; ``softmax`` normalises them. Only real positions are computed, none padded.

    Args:
        width: K, columns of a target and of a past item.
        hidden: units of the MLP.
        activation: of the MLP.
        softmax: weights of a history sum to 1.
    """

    def __init__(self, width: int, hidden: Sequence[int], activation: Activation, softmax: bool) -> None:
        super().__init__()
        mlp = MLP(4 * width, hidden, activation=activation)
        self.unit = nn.Sequential(mlp, Logit(mlp.out_features))
        self.softmax = softmax

    def forward(self, target: Tensor, history: Tensor, lengths: Tensor) -> Tensor:
        """target [B, K], history [n, K] row after row, lengths int64 [B] -> [B, K]; empty histories give zeros."""
        batch = lengths.shape[0]
        rows = torch.arange(batch, device=lengths.device).repeat_interleave(lengths, output_size=history.shape[0])
        query = target.index_select(0, rows)
        weight = self.unit(torch.cat([query, history, query - history, query * history], dim=1))  # float32 [n]
        if self.softmax:
            weight = jagged_softmax(weight, rows, batch)
        return history.new_zeros(target.shape).index_add(0, rows, weight[:, None] * history)


def jagged_softmax(scores: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Softmax of scores [n] within each row; ``rows`` int64 [n] says whose score each is."""
    top = scores.new_zeros(num_rows).scatter_reduce(0, rows, scores.detach(), "amax", include_self=False)
    exp = torch.exp(scores - top.index_select(0, rows))
    total = exp.new_zeros(num_rows).index_add(0, rows, exp)
    return exp / total.index_select(0, rows)
