"""Codebooks of one table, and the codes of its rows.

Rows x [D] are coded in a space y = x A in which squared distance is what an error costs: A A^T is the table's metric,
so that |y - y'|^2 = (x - x') A A^T (x - x')^T. Its axes are the principal ones of the weighted rows, the strongest
first, so that codebooks may do without the last ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.posttraining._kmeans import kmeans, nearest
from recsys_emb.embeddings.posttraining._levels import Layout, TableForm

SAMPLE = 1 << 17
"""Rows that codebooks are fitted on; of a larger table so many are drawn by their weights."""
SMALLEST = 1e-6
"""Of a metric's largest eigenvalue: what a direction counts that costs nothing."""


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


def levels(y: Tensor, weights: Tensor, bits: Sequence[int], generator: torch.Generator) -> Iterator[Tensor]:
    """What is left of y after one, two, ... levels of residual codes, float32 [s, d] (Chen, Guan, Wang, 2010)."""
    for b in bits:
        centres = kmeans(y, weights, 1 << b, generator, rounds=5)
        y = y - centres[nearest(y, centres)[0]]
        yield y


def fit_books(
    layout: Layout, rows: Sample, y: Tensor, form: TableForm, generator: torch.Generator, restarts: int
) -> list[Tensor]:
    """A codebook per level, float32 [2^b, columns]: residual, of what those before leave; product, of its columns."""
    rest, books = y.clone(), []
    for bits, ids, (first, end) in zip(form.bits, form.ids, layout.columns(form)):
        covered = rows.upto(ids)
        part, weights = rest[:covered, first:end], rows.weights[:covered]
        book = kmeans(part.contiguous(), weights, 1 << bits, generator, restarts)
        part -= book[nearest(part.contiguous(), book)[0]]
        books.append(book)
    return books


def encode(layout: Layout, form: TableForm, y: Tensor, books: Sequence[Tensor]) -> Tensor:
    """Codes uint8 [n, L] of rows y [n, d]: level by level the nearest row of a codebook to what is left."""
    rest, codes = y.clone(), []
    for book, (first, end) in zip(books, layout.columns(form)):
        cells = nearest(rest[:, first:end].contiguous(), book)[0]
        rest[:, first:end] -= book[cells]
        codes.append(cells.to(torch.uint8))
    return torch.stack(codes, dim=1)
