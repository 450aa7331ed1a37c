"""Codebooks of one table, and the codes of its rows.

Rows x [D] are coded in a space y = x A in which squared distance is what an error costs: A A^T is the table's metric,
so that |y - y'|^2 = (x - x') A A^T (x - x')^T. Its axes are the principal ones of the weighted rows, the strongest
first, so that codebooks may do without the last ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.posttraining._kmeans import kmeans, nearest
from recsys_emb.embeddings.posttraining._levels import Layout, TableForm

SAMPLE = 1 << 17
"""Rows that codebooks are fitted on; of a larger table so many are drawn by their weights."""
SMALLEST = 1e-6
"""Share of a metric's largest eigenvalue: what a direction counts that costs nothing."""


@dataclass(frozen=True)
class Sample:
    """Rows of a table, by rising id, with id 0 among them.

    ids: int64 [s]; rows: float32 [s, D]; weights: float32 [s].
    """

    ids: Tensor
    rows: Tensor
    weights: Tensor

    def upto(self, ids: int) -> int:
        """How many of the rows belong to the first ``ids`` ids."""
        return int(torch.searchsorted(self.ids, ids))

    def thinned(self, rows: int) -> Sample:
        """About so many of its rows."""
        if len(self.ids) <= rows:
            return self
        places, weights = drawn(self.weights.double().numpy(), rows)
        return replace(self, ids=self.ids[places], rows=self.rows[places], weights=weights)


def drawn(weights: np.ndarray, rows: int) -> tuple[Tensor, Tensor]:
    """Places int64, rising, and weights float32 of a sample drawn in proportion to ``weights``, place 0 included.

    Every (total / rows)-th unit of weight is drawn, so a heavy row is never missed and counts as it did.
    """
    ends = weights.cumsum()
    step = ends[-1] / rows
    places, times = np.unique(np.searchsorted(ends, (np.arange(rows) + 0.5) * step, side="right"), return_counts=True)
    if places[0] != 0:
        places, times = np.insert(places, 0, 0), np.insert(times.astype(np.float64), 0, weights[0] / step)
    return torch.from_numpy(places), torch.from_numpy(times * step).float()


def sample(trained: EmbeddingBackend[Any], table: int, weights: np.ndarray) -> Sample:
    """Rows to fit on, and their weights; all where there are not too many."""
    places, chosen = torch.arange(len(weights)), torch.from_numpy(weights).float()
    if len(weights) > SAMPLE:
        places, chosen = drawn(weights, SAMPLE)
    parts, at = [], 0
    for rows in trained.rows(table):
        first, end = (int(i) for i in torch.searchsorted(places, torch.tensor([at, at + len(rows)])))
        parts.append(rows.float().cpu()[places[first:end] - at])
        at += len(rows)
    return Sample(places, torch.cat(parts), chosen)


@dataclass(frozen=True)
class Space:
    """y = (x - mean) into, x = mean + y back; into, back float32 [D, D]."""

    mean: Tensor
    into: Tensor
    back: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return (rows - self.mean) @ self.into

    def reordered(self, axes: Sequence[int]) -> Space:
        return replace(self, into=self.into[:, list(axes)], back=self.back[list(axes)])


def principal_space(rows: Sample, metric: Tensor) -> Space:
    """The space whose axes are the principal ones of the weighted rows under the metric, float64 [D, D]."""
    x, weights = rows.rows.double(), rows.weights.double()
    total = weights.sum().clamp(min=torch.finfo(torch.float64).tiny)
    mean = weights @ x / total
    root, inverse = _root(metric)
    y = (x - mean) @ root
    axes = torch.linalg.eigh(y.t() @ (y * weights[:, None]))[1].flip(1)
    return Space(mean.float(), (root @ axes).float(), (axes.t() @ inverse).float())


def column_space(metric: Tensor) -> Space:
    """The columns as they are, each stretched by what it costs alone."""
    diagonal = metric.diagonal()
    stretch = diagonal.clamp(min=SMALLEST * float(diagonal.max())).sqrt().float()
    return Space(torch.zeros_like(stretch), stretch.diag(), stretch.reciprocal().diag())


def _root(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric square root and its inverse."""
    values, vectors = torch.linalg.eigh(metric)
    values = values.clamp(min=SMALLEST * float(values.max())).sqrt()
    return (vectors * values) @ vectors.t(), (vectors / values) @ vectors.t()


def balanced(variances: Sequence[float], columns: Sequence[tuple[int, int]]) -> list[int]:
    """Which axis each column of a product takes, so that its parts err alike.

    The strongest axis left goes to the part whose variances have the least product so far (Ge, He, Ke, Sun, "Optimized
    Product Quantization", 2013, section 3.2.3).

    Args:
        variances: of the axes.
        columns: first column and end of each part.
    """
    parts: list[list[int]] = [[] for _ in columns]
    products = [0.0] * len(parts)
    for axis in sorted(range(len(variances)), key=lambda a: -variances[a]):
        free = [i for i, (first, end) in enumerate(columns) if len(parts[i]) < end - first]
        part = min(free, key=lambda i: products[i])
        parts[part].append(axis)
        products[part] += math.log(max(variances[axis], 1e-30))
    return [axis for part in parts for axis in part]


def fit_books(
    layout: Layout,
    rows: Sample,
    y: Tensor,
    form: TableForm,
    generator: torch.Generator,
    restarts: int,
    rounds: int = 25,
) -> list[Tensor]:
    """A codebook for each level, float32 [2^b, D], 0 beyond its columns; ``y`` [<= s, D] are the rows in the space.

    Residual ones are fitted each to what those before leave of the ids that it covers (Chen, Guan, Wang, 2010), those
    of a product to columns that the others do not touch (Jegou, Douze, Schmid, 2011).
    """
    rest, books = y.clone(), []
    for bits, ids, (first, end) in zip(form.bits, form.ids, layout.columns(form)):
        covered = rows.upto(ids)
        part = rest[:covered, first:end].contiguous()
        book = kmeans(part, rows.weights[:covered], 1 << bits, generator, restarts, rounds)
        rest[:covered, first:end] -= book[nearest(part, book)[0]]
        books.append(F.pad(book, (first, layout.dim - end)))
    return books


def encode(y: Tensor, books: Sequence[Tensor]) -> Tensor:
    """Codes uint8 [n, L] of rows y [n, D]: level by level the nearest row of a codebook [2^b, D] to what is left."""
    rest, codes = y, []
    for book in books:
        cells = nearest(rest, book)[0]
        rest = rest - book[cells]
        codes.append(cells.to(torch.uint8))
    return torch.stack(codes, dim=1)
