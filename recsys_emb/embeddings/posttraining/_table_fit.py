"""The codes of one table: which forms are worth their bytes, and what is stored of the chosen one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend, falls_with_id
from recsys_emb.embeddings.composed import project
from recsys_emb.embeddings.posttraining._codebooks import (
    Sample,
    Space,
    column_space,
    encode,
    fit_books,
    levels,
    principal_space,
    sample,
)
from recsys_emb.embeddings.posttraining._levels import (
    Layout,
    Option,
    TableForm,
    coded_options,
    kept_options,
    uniform,
    useful,
)
from recsys_emb.embeddings.posttraining._packing import pack
from recsys_emb.embeddings.posttraining.base import saturated

HALF = torch.float16
"""Of codebooks, and of all else that is stored of a table beside its codes."""
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Of the ids that training saw: where a level of codes may end."""
MOST_LEVELS = 12
TRIED_ROWS = 1 << 12
"""Rows of a table on which forms are compared; the chosen one is fitted on more."""
UNSEEN_WEIGHT = 0.1
"""What an id that training never saw counts beside the occurrences of the others."""


class TableFit:
    """What fitting knows of one table: a sample of its rows, how much each counts, what errors cost.

    Args:
        trained: the backend whose rows are coded.
        table: which of its tables.
        turned: the columns are turned to their principal axes.
        counts: int64 [N], how often training saw each id; None where that is not known.
        metric: float64 [D, D], what an error costs; None: its square.
    """

    def __init__(
        self,
        trained: EmbeddingBackend[Any],
        table: int,
        turned: bool,
        counts: np.ndarray | None,
        metric: Tensor | None,
    ) -> None:
        spec = trained.spec.tables[table]
        self.trained, self.table, self.n = trained, table, spec.num_embeddings
        self.weights = np.ones(self.n) if counts is None else np.asarray(counts, dtype=np.float64) + UNSEEN_WEIGHT
        falling = counts is not None and falls_with_id(counts)
        seen = int(np.asarray(counts).nonzero()[0].max(initial=0)) + 1 if counts is not None and falling else self.n
        self.cuts = sorted({max(1, round(seen * share)) for share in SHARES}) if falling else [self.n]
        self.rows = sample(trained, table, self.weights)
        dim = trained.spec.embedding_dim
        self.metric = torch.eye(dim, dtype=torch.float64) if metric is None else metric.double()
        self.turned = turned

    def space(self, rows: Sample) -> Space:
        return principal_space(rows, self.metric) if self.turned else column_space(self.metric)

    def options(
        self, layout: Layout, bits_of: int | None, wanted: int | None, budget: int, generator: torch.Generator
    ) -> list[Option]:
        """Forms that the table may take within a budget, by rising bytes.

        Args:
            layout: of all tables.
            bits_of: a code; None for any.
            wanted: levels, 0 for one row for all ids; None for any number.
            budget: bytes of all tables.
            generator: of the starts of k-means.
        """
        rows = self.rows.thinned(TRIED_ROWS)
        scale = float(self.weights.sum()) / float(rows.weights.sum())
        y = self.space(rows)(rows.rows)
        cuts, kept = self.cuts, sorted({1, *self.cuts})
        merged = scale * _tails(rows, y, cuts)
        full = 2 * layout.dim * self.n
        found = [] if wanted else kept_options(layout, kept, scale * _tails(rows, y, kept))
        if wanted == 0:
            return found[:1]
        for bits in range(1, 9) if bits_of is None else (bits_of,):
            if 1 << bits >= self.n and bits_of is None:
                continue
            for width in self._widths(layout):
                most = wanted or MOST_LEVELS
                curves = self._curves(layout, rows, y, width, [bits] * most, cuts, min(full, budget), generator)
                if wanted:
                    form = uniform(layout, cuts[-1], bits, wanted, width)
                    found.append(Option(layout.nbytes(form), scale * float(curves[-1][-1] + merged[-1]), form))
                else:
                    curves = [scale * curve for curve in curves]
                    found += coded_options(layout, cuts, [bits] * (len(curves) - 1), width, merged, curves)
        return useful(found)

    def _widths(self, layout: Layout) -> list[int]:
        dim = layout.dim
        return [dim] if layout.product else sorted({dim, -(-dim // 2), -(-dim // 4)})

    def _curves(
        self,
        layout: Layout,
        rows: Sample,
        y: Tensor,
        width: int,
        bits: Sequence[int],
        cuts: Sequence[int],
        most: int,
        generator: torch.Generator,
    ) -> list[np.ndarray]:
        """For 0, 1, ... levels the error of the ids below each cut, as far as ``most`` bytes pay for levels."""
        if layout.product:
            return self._product_curves(layout, rows, y, bits, cuts, generator)
        missed = y[:, width:].square().sum(1)
        out = [_heads(rows, y.square().sum(1), cuts)]
        for count, left in enumerate(levels(y[:, :width].contiguous(), rows.weights, bits, generator), 1):
            out.append(_heads(rows, left.square().sum(1) + missed, cuts))
            if layout.nbytes(uniform(layout, cuts[0], bits[0], count + 1, width)) > most:
                break
        return out

    def _product_curves(
        self,
        layout: Layout,
        rows: Sample,
        y: Tensor,
        bits: Sequence[int],
        cuts: Sequence[int],
        generator: torch.Generator,
    ) -> list[np.ndarray]:
        """As ``_curves``; a product of L codes splits the columns in L parts, so each L is fitted for itself."""
        out, dim = [_heads(rows, y.square().sum(1), cuts)], y.shape[1]
        for count in range(1, min(len(bits), dim) + 1):
            form = TableForm(width=dim, bits=tuple(bits[:count]), ids=(cuts[-1],) * count)
            books = fit_books(layout, rows, y, form, generator, 1)
            codes = encode(layout, form, y, books)
            back = torch.cat([book[codes[:, i].long()] for i, book in enumerate(books)], dim=1)
            out.append(_heads(rows, (y - back).square().sum(1), cuts))
        return out

    @torch.no_grad()
    def stored(
        self, layout: Layout, form: TableForm, generator: torch.Generator, restarts: int
    ) -> tuple[Tensor, Tensor]:
        """The table's packed codes, uint8, and its floats, float16."""
        first = form.ids[0]
        shared = self._shared_row(first)
        if not form.width:
            kept = torch.cat(self._first_rows(first))
            kept[0] = shared
            return torch.empty(0, dtype=torch.uint8), saturated(kept, HALF).flatten()
        space = self.space(self.rows)
        y = space(self.rows.rows)[:, : form.width]
        books = fit_books(layout, self.rows, y, form, generator, restarts)
        floats, books = _rounded(layout, form, space, books)
        codes: list[Tensor] = []
        for part in self._first_rows(first):
            if not codes:
                part = torch.cat([shared[None], part[1:]])
            codes.append(encode(layout, form, space(part)[:, : form.width], books))
        each = torch.cat(codes)
        packed = [pack(each[:n, level], b) for level, (n, b) in enumerate(zip(form.ids, form.bits))]
        return torch.cat(packed), floats

    def _first_rows(self, ids: int) -> list[Tensor]:
        parts, at = [], 0
        for rows in self.trained.rows(self.table):
            parts.append(rows[: max(0, ids - at)].float().cpu())
            at += len(rows)
            if at >= ids:
                break
        return parts

    def _shared_row(self, first: int) -> Tensor:
        """The mean of id 0 and of the ids from ``first`` on, which are stored alike. float32 [D]"""
        weights = torch.from_numpy(self.weights)
        total, weight, at = torch.zeros(self.trained.spec.embedding_dim, dtype=torch.float64), 0.0, 0
        for rows in self.trained.rows(self.table):
            mine = weights[at : at + len(rows)].clone()
            places = torch.arange(at, at + len(rows))
            mine[(places > 0) & (places < first)] = 0
            total += mine @ rows.double().cpu()
            weight, at = weight + float(mine.sum()), at + len(rows)
        return (total / max(weight, 1e-30)).float()


def _heads(rows: Sample, errors: Tensor, cuts: Sequence[int]) -> np.ndarray:
    """The weighted errors of the ids below each cut, summed."""
    sums = np.concatenate([[0.0], (errors.double() * rows.weights.double()).cumsum(0).numpy()])
    return sums[[rows.upto(cut) for cut in cuts]]


def _tails(rows: Sample, y: Tensor, cuts: Sequence[int]) -> np.ndarray:
    """The weighted error of the ids from each cut on, and of id 0, when all are their mean."""
    w, y = rows.weights.double(), y.double()
    out = []
    for cut in cuts:
        mine = w.clone()
        mine[1 : rows.upto(cut)] = 0
        total = mine.sum().clamp(min=1e-30)
        out.append(float((mine @ y.square()).sum() - (mine @ y).square().sum() / total))
    return np.maximum(np.array(out), 0.0)


def _rounded(layout: Layout, form: TableForm, space: Space, books: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What is stored of codebooks, float16, and the codebooks in the space of the rows as that will be read."""
    if layout.has_basis(form):
        small = [saturated(book, HALF) for book in books]
        beside = [saturated(space.mean, HALF), saturated(space.back[: form.width], HALF)]
        return torch.cat([x.flatten() for x in (*small, *beside)]), [book.float() for book in small]
    back, into = space.back, space.into
    stored, read = [], []
    for level, (book, (first, end)) in enumerate(zip(books, layout.columns(form))):
        shift = space.mean if level == 0 and not layout.product else torch.zeros_like(space.mean)
        if layout.product:  # columns as they are, stretched
            plain = saturated(book * back.diagonal()[first:end], HALF)
            read.append(plain.float() * into.diagonal()[first:end])
        else:
            plain = saturated(book @ back + shift, HALF)
            read.append((plain.float() - shift) @ into)
        stored.append(plain.flatten())
    return torch.cat(stored), read


def expanded(layout: Layout, form: TableForm, books: Tensor) -> Tensor:
    """A table's codebook rows in D columns, level after level, or its kept rows. float32 [rows, D]"""
    dim, width = layout.dim, form.width
    if not width:
        return books.view(form.ids[0], dim)
    columns = layout.columns(form)
    sizes = [(end - first) << b for (first, end), b in zip(columns, form.bits)]
    *parts, rest = books.split([*sizes, len(books) - sum(sizes)])
    padded = [
        F.pad(part.view(1 << b, end - first), (first, width - end))
        for part, b, (first, end) in zip(parts, form.bits, columns)
    ]
    rows = torch.cat(padded)
    if not layout.has_basis(form):
        return rows
    mean, basis = rest[:dim], rest[dim:].view(width, dim)
    first = 1 << form.bits[0]  # the mean is part of the first level's rows
    return project(rows, basis[None], [len(rows)]) + F.pad(mean.expand(first, dim), (0, 0, 0, len(rows) - first))
