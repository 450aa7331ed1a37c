"""A full table with learned thresholds on its rows, and its forms within a budget: what ``optembed`` trains first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys_emb.embeddings.backends.kept_rows import KeptRowsConfig, kept_bytes
from recsys_emb.embeddings.base import GroupSpec
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.nested import NestedPart


class Supernet(NestedPart):
    """A full table of which each lookup keeps some columns, and the rows above their table's threshold."""

    cut = 0.0
    """Outside training a row must be this much above its threshold."""

    def __init__(self, spec: GroupSpec, device: torch.device | str | None) -> None:
        super().__init__(spec, range(1, spec.vector_dim + 1), device)
        self.thresholds = nn.Parameter(torch.zeros(len(self.sizes), device=device))

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.thresholds)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows = self.table(self.transform(ids, counts))  # [n, D]
        margin = l1_norms(rows, self.spec.vector_dim) - per_id(self.thresholds, counts, ids)
        keep = LongTailStep.apply(margin) if self.training else (margin > self.cut).to(rows.dtype)
        return rows * (keep[:, None] * self.kept_columns(ids, counts))

    @torch.no_grad()
    def margins(self, chunk: int = 1 << 18) -> list[Tensor]:
        """How far each row is above its table's threshold, per table float [num_embeddings]."""
        norms = torch.cat([l1_norms(rows, self.spec.vector_dim) for rows in self.table.weight.split(chunk)])
        return [norm - t for norm, t in zip(norms.split(self.sizes), self.thresholds)]


def l1_norms(rows: Tensor, vector_dim: int) -> Tensor:
    """Norms of the vectors alone, without a first-order column behind them: [n, D] -> [n].

    Many times faster than ``torch.linalg.vector_norm``, forward and backward.
    """
    return rows[:, :vector_dim].abs().sum(1)


class RowCandidates:
    """A supernet's forms within a budget: widths, and the rows furthest above their thresholds, as many as fit.

    Args:
        spec: the tables.
        net: trained; its weights are read once, here.
        budget: bytes.
    """

    def __init__(self, spec: GroupSpec, net: Supernet, budget: int) -> None:
        self.spec, self.net, self.budget = spec, net, budget
        self.choices = net.choices
        self.margins = net.margins()
        self._rising = [np.sort(m.cpu().numpy()) for m in self.margins]

    def use(self, widths: Sequence[int]) -> None:
        self.net.use(widths)
        self.net.cut = self._cut(widths)

    def nbytes(self, widths: Sequence[int]) -> int:
        return self._bytes(widths, self._cut(widths))

    def _bytes(self, widths: Sequence[int], cut: float | np.float32) -> int:
        rows = [len(m) - int(np.searchsorted(m, np.float32(cut), side="right")) for m in self._rising]
        return kept_bytes(self.spec, KeptRowsConfig(widths=tuple(widths), rows=tuple(rows)))

    def _cut(self, widths: Sequence[int]) -> float:
        """The least margin, 0 or above, beyond which rows fit in the budget at these widths."""
        low, high = np.float32(0), max(m[-1] for m in self._rising)
        if self._bytes(widths, low) <= self.budget:
            return 0.0
        while low < (middle := (low + high) / np.float32(2)) < high:
            low, high = (low, middle) if self._bytes(widths, middle) <= self.budget else (middle, high)
        # Between two rows, so that no lookup's rounding moves one across.
        above = [m[i] for m in self._rising if (i := np.searchsorted(m, high, side="right")) < len(m)]
        return float((high + min(above)) / np.float32(2)) if above else float(high)


class LongTailStep(torch.autograd.Function):
    """1 where x > 0, else 0. Its gradient is the long-tailed estimator of Liu et al., "Dynamic Sparse Training", 2020,
    eq. 5: 2 - 4|x| up to 0.4, 0.4 up to 1, then 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        distance = x.abs()
        return grads[0] * torch.where(distance <= 0.4, 2 - 4 * distance, 0.4 * (distance <= 1))
