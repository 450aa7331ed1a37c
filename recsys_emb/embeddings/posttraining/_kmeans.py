"""Weighted k-means of rows that need not fit into one matrix of distances.

n rows, d columns, k centres. Distances go through a matrix product, a chunk of rows at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 1 << 22
"""Distances held at a time."""


def kmeans(
    rows: Tensor, weights: Tensor, k: int, generator: torch.Generator, restarts: int = 1, rounds: int = 25
) -> Tensor:
    """The centres, float32 [k, d], of the start that ends with the least weighted squared error.

    Args:
        rows: float32 [n, d].
        weights: float32 [n], how much each counts; not negative.
        k: more than there are distinct rows repeat some.
        generator: of the starts.
        restarts: how many.
        rounds: at most so many of assignment and means, fewer where the error falls by less than a thousandth.
    """
    starts = (lloyd(rows, weights, plus_plus(rows, weights, k, generator), rounds) for _ in range(restarts))
    return min(starts, key=lambda found: found[1])[0]


def plus_plus(rows: Tensor, weights: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k rows, each drawn by its weight times its squared distance to those before (Arthur, Vassilvitskii, 2007)."""
    centres = rows.new_empty(k, rows.shape[1])
    distance = torch.ones_like(weights)
    for i in range(k):
        centres[i] = rows[_draw(weights * distance, generator)]
        to_new = (rows - centres[i]).square_().sum(1)
        distance = to_new if i == 0 else torch.minimum(distance, to_new, out=distance)
    return centres


def _draw(chances: Tensor, generator: torch.Generator) -> int:
    total = chances.double().cumsum(0)
    at = torch.rand((), generator=generator, dtype=torch.float64).item() * float(total[-1])
    return min(int(torch.searchsorted(total, at, right=True)), len(chances) - 1)


def lloyd(rows: Tensor, weights: Tensor, centres: Tensor, rounds: int = 25) -> tuple[Tensor, float]:
    """Centres after up to ``rounds`` of assignment and means (Lloyd, 1982), and their weighted squared error.

    A centre without rows moves to the row with the largest error, so the error never rises.
    """
    best = centres, float("inf")
    for _ in range(rounds):
        cells, distance = nearest(rows, centres)
        errors = distance.mul_(weights)
        error = float(errors.sum(dtype=torch.float64))
        if error >= best[1] * (1 - 1e-3):
            return (centres, error) if error < best[1] else best
        best = centres, error
        centres = _means(rows, weights, cells, errors, len(centres))
    error = float(nearest(rows, centres)[1].mul_(weights).sum(dtype=torch.float64))
    return (centres, error) if error < best[1] else best


def _means(rows: Tensor, weights: Tensor, cells: Tensor, errors: Tensor, k: int) -> Tensor:
    sums = rows.new_zeros(k, rows.shape[1]).index_add_(0, cells, rows * weights[:, None])
    totals = weights.new_zeros(k).index_add_(0, cells, weights)
    means = sums / totals.clamp(min=torch.finfo(totals.dtype).tiny)[:, None]
    empty = (totals == 0).nonzero()[:, 0]
    if len(empty):
        worst = errors.topk(min(len(empty), len(rows))).indices
        means[empty] = rows[worst.repeat(-(-len(empty) // len(worst)))[: len(empty)]]
    return means


def nearest(rows: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's nearest centre, int64 [n], and its squared distance, float32 [n]."""
    squares = centres.square().sum(1)
    cells, distance = rows.new_empty(len(rows), dtype=torch.int64), rows.new_empty(len(rows))
    step = max(1, CHUNK // len(centres))
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        torch.min(torch.addmm(squares, rows[part], centres.t(), alpha=-2), dim=1, out=(distance[part], cells[part]))
    return cells, distance.add_(rows.square().sum(1)).clamp_(min=0)
