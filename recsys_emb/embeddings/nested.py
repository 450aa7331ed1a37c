"""Nested widths: a vector of w columns is the first w of D, the rest zeros. A first-order column stays behind them.

n rows, D columns in all, V = ``GroupSpec.vector_dim`` of them a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def narrow(rows: Tensor, width: int, vector_dim: int) -> Tensor:
    """The first ``width`` columns of a vector, and what follows the vector. [n, D] -> [n, D - V + width]."""
    return torch.cat([rows[:, :width], rows[:, vector_dim:]], dim=1)


def widen(rows: Tensor, width: int, vector_dim: int) -> Tensor:
    """The inverse of ``narrow``, with zeros for the columns that were left out."""
    if width == vector_dim:
        return rows
    return torch.cat([rows[:, :width], rows.new_zeros(len(rows), vector_dim - width), rows[:, width:]], dim=1)


def by_width(widths: Sequence[int]) -> dict[int, list[int]]:
    """The tables of each width, widest first."""
    return {w: [t for t, mine in enumerate(widths) if mine == w] for w in sorted(set(widths), reverse=True)}
