"""The codes of one table: which forms are worth their bytes, and what is stored of the chosen one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.posttraining._codebooks import (
    Sample,
    Space,
    balanced,
    column_space,
    encode,
    fit_books,
    principal_space,
    sample,
)
from recsys_emb.embeddings.posttraining._decoding import expanded
from recsys_emb.embeddings.posttraining._kmeans import kmeans, nearest
from recsys_emb.embeddings.posttraining._levels import (
    Layout,
    Option,
    TableForm,
    coded_options,
    given_forms,
    kept_options,
    useful,
)
from recsys_emb.embeddings.posttraining._packing import pack
from recsys_emb.embeddings.posttraining.base import ErrorCost, saturated

CUTS = 48
"""Numbers of ids where a level of codes may end: from 1 to all, in equal ratios."""
TRIED_ROWS = 1 << 14
"""Rows on which forms are compared; the chosen one is fitted on more."""
TRIED_ROUNDS = 8
"""Rounds of k-means, then."""
ENOUGH = 1e-5
"""Share of a table's squared error below which no more levels are tried."""


class _Tried(NamedTuple):
    """What forms are compared on. s rows, C cuts, D columns of the space.

    rows: a sample; y: [s, D], the rows in the space; cuts: numbers of ids; places: rows below each cut; merged: float64
    [C, D], the error of id 0 and all ids from a cut on when one row stands for them.
    """

    rows: Sample
    y: Tensor
    cuts: list[int]
    places: list[int]
    merged: np.ndarray

    def below(self, rest: Tensor) -> np.ndarray:
        """The error of the ids below each cut, float64 [C, D], when codes miss ``rest`` [<= s, D] of their rows."""
        weighted = rest.double().square() * self.rows.weights[: len(rest), None].double()
        return _sums(weighted.numpy(), self.places)


class TableFit:
    """A trained table, how much each of its rows counts, and what errors of them cost.

    Args:
        trained: the backend whose rows are coded.
        table: which of its tables.
        layout: of the codes of all tables.
        counts: int64 [N], how often training saw each id; None where that is not known: alike.
        cost: of errors; None: their squares.
        seed: of the starts of k-means.
    """

    def __init__(
        self,
        trained: EmbeddingBackend[Any],
        table: int,
        layout: Layout,
        counts: np.ndarray | None,
        cost: ErrorCost | None,
        seed: int,
    ) -> None:
        self.trained, self.table, self.layout, self.seed = trained, table, layout, seed
        weights = np.ones(trained.spec.tables[table].num_embeddings) if counts is None else counts.astype(np.float64)
        self.coded = seen_ids(weights)
        if cost is not None:
            weights = weights * cost.relative.double().numpy()
        weights[0] = max(weights[0], 1)  # it is looked up for values that training never saw
        self.weights, self.rows = weights, sample(trained, table, weights)
        metric = torch.eye(layout.dim, dtype=torch.float64) if cost is None else cost.metric.double()
        self.scale = float(metric.trace()) / layout.dim
        metric = metric / self.scale if self.scale else torch.eye(layout.dim, dtype=torch.float64)
        self.space = principal_space(self.rows, metric) if layout.turned else column_space(metric)

    # -- forms ----------------------------------------------------------------------------------------------------

    def options(self, bits: Sequence[int], levels: int | None, budget: int) -> list[Option]:
        """Forms that the table may take, by rising bytes and falling error.

        Args:
            bits: that a code may have.
            levels: of each id, 0 for one row for all ids; None for any number.
            budget: bytes of all tables; more are of no use.
        """
        rows = self.rows.thinned(TRIED_ROWS)
        cuts = sorted({round(cut) for cut in np.geomspace(1, self.coded, CUTS)})
        y, places = self.space(rows.rows), [rows.upto(cut) for cut in cuts]
        tried = _Tried(rows, y, cuts, places, _merged(y, rows.weights, places))
        kept = kept_options(self.layout, cuts, tried.merged.sum(1))
        if levels is None:
            most = min(budget, 2 * self.layout.dim * self.coded)
            coded = self._products if self.layout.product else self._residuals
            found = [*kept, *(option for b in bits if 1 << b < self.coded for option in coded(tried, b, most))]
        elif levels == 0:
            found = kept[:1]
        else:
            found = [self._given(tried, form) for form in given_forms(self.layout, self.coded, bits, levels)]
        return useful([option._replace(error=self.scale * option.error) for option in found])

    def _residuals(self, tried: _Tried, bits: int, most: int) -> Iterator[Option]:
        """One fit shows what all widths do: a narrower codebook lacks the last columns."""
        curves = [tried.below(rest) for rest in self._levels(tried, bits, most)]
        for width in self.layout.widths():
            beyond = float(tried.merged[0, width:].sum())
            merged, levels = tried.merged[:, :width].sum(1), [curve[:, :width].sum(1) for curve in curves]
            for option in coded_options(self.layout, tried.cuts, bits, width, merged, levels):
                yield option._replace(error=option.error + beyond)

    def _levels(self, tried: _Tried, bits: int, most: int) -> Iterator[Tensor]:
        """What one, two, ... levels leave of the rows, as long as ``most`` bytes pay for the first ids' codes."""
        coded, generator = tried.places[-1], self._generator()
        rest, weights = tried.y[:coded], tried.rows.weights[:coded]
        enough = ENOUGH * float(tried.merged[0].sum())
        for level in range(1, self.layout.most_levels() + 1):
            book = kmeans(rest, weights, 1 << bits, generator, rounds=TRIED_ROUNDS)
            rest = rest - book[nearest(rest, book)[0]]
            yield rest
            if level * self.coded * bits / 8 > most or float(weights @ rest.square().sum(1)) <= enough:
                return

    def _products(self, tried: _Tried, bits: int, most: int) -> Iterator[Option]:
        for parts in range(1, self.layout.most_levels() + 1):
            whole = TableForm(width=self.layout.dim, bits=(bits,) * parts, ids=(self.coded,) * parts)
            errors = tried.below(self._missed(tried, whole)).sum(1) + tried.merged.sum(1)
            for cut, error in zip(tried.cuts, errors):
                form = TableForm(width=whole.width, bits=whole.bits, ids=(cut,) * parts)
                yield Option(self.layout.nbytes(form), float(error), form)
            if parts * self.coded * bits / 8 > most:
                return

    def _given(self, tried: _Tried, form: TableForm) -> Option:
        error = tried.below(self._missed(tried, form))[-1].sum() + tried.merged[-1].sum()
        return Option(self.layout.nbytes(form), float(error), form)

    def _missed(self, tried: _Tried, form: TableForm) -> Tensor:
        """What the form's codes leave of the rows that have some, [<= s, D]."""
        y = self._space(form)(tried.rows.rows)[: tried.places[-1]]
        books = fit_books(self.layout, tried.rows, y, form, self._generator(), 1, TRIED_ROUNDS)
        codes = encode(y, books)
        for level, book in enumerate(books):
            y = y - book[codes[:, level].long()]
        return y

    # -- arrays ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def stored(self, form: TableForm, restarts: int) -> tuple[Tensor, Tensor]:
        """The table's packed codes, uint8, and its codebooks and basis, or its rows, float16."""
        parts = self._first_rows(form.ids[0])
        parts[0][0], weight = self._shared_row(form.ids[0])
        if not form.width:
            return torch.empty(0, dtype=torch.uint8), saturated(torch.cat(parts), torch.float16).flatten()
        rows = replace(self.rows, rows=self.rows.rows.clone(), weights=self.rows.weights.clone())
        rows.rows[0], rows.weights[0] = parts[0][0], weight
        space = self._space(form)
        books = fit_books(self.layout, rows, space(rows.rows), form, self._generator(), restarts)
        floats = _floats(self.layout, form, space, books)
        read = expanded(self.layout, form, floats)
        read[: 1 << form.bits[0]] -= space.mean
        codes = self._codes(form, parts, space, (read @ space.into).split([1 << b for b in form.bits]))
        return torch.cat([pack(codes[:n, level], b) for level, (n, b) in enumerate(zip(form.ids, form.bits))]), floats

    def _codes(self, form: TableForm, parts: Sequence[Tensor], space: Space, books: Sequence[Tensor]) -> Tensor:
        """uint8 [n, L], each id's for as many levels as cover it."""
        codes, at = torch.zeros(form.ids[0], len(form.bits), dtype=torch.uint8), 0
        for part in parts:
            y = space(part)
            for depth, (first, end) in enumerate(zip((*form.ids[1:], 0), form.ids), 1):
                low, high = max(first - at, 0), min(end - at, len(part))
                if low < high:
                    codes[at + low : at + high, :depth] = encode(y[low:high], books[:depth])
            at += len(part)
        return codes

    def _space(self, form: TableForm) -> Space:
        """The space, its axes in the order of the form's columns."""
        if not (self.layout.product and self.layout.turned):
            return self.space
        variances = self.rows.weights @ self.space(self.rows.rows).square()
        return self.space.reordered(balanced(variances.tolist(), self.layout.columns(form)))

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _first_rows(self, ids: int) -> list[Tensor]:
        parts, at = [], 0
        for rows in self.trained.rows(self.table):
            parts.append(rows[: ids - at].float().cpu().clone())
            at += len(rows)
            if at >= ids:
                break
        return parts

    def _shared_row(self, first: int) -> tuple[Tensor, float]:
        """The mean of id 0 and of the ids from ``first`` on, which are stored alike, float32 [D], and their weight."""
        weights = torch.from_numpy(self.weights).clone()
        weights[1:first] = 0
        total, at = torch.zeros(self.layout.dim, dtype=torch.float64), 0
        for rows in self.trained.rows(self.table):
            total += weights[at : at + len(rows)] @ rows.double().cpu()
            at += len(rows)
        return (total / weights.sum()).float(), float(weights.sum())


def seen_ids(counts: np.ndarray) -> int:
    """How many ids, from 0 on, may need codes of their own: those up to the last that training saw."""
    return int(np.flatnonzero(counts).max(initial=0)) + 1


def _floats(layout: Layout, form: TableForm, space: Space, books: Sequence[Tensor]) -> Tensor:
    """What is stored of codebooks [2^b, D] of the space, float16, as ``expanded`` reads it."""
    if layout.has_basis(form):
        parts = [book[:, first:end] for book, (first, end) in zip(books, layout.columns(form))]
        stored = [part.flatten() for part in (*parts, space.mean, space.back[: form.width])]
        return saturated(torch.cat(stored), torch.float16)
    rows = [book @ space.back for book in books]
    rows[0] = rows[0] + space.mean
    stored = [r[:, first:end].flatten() for r, (first, end) in zip(rows, layout.columns(form))]
    return saturated(torch.cat(stored), torch.float16)


def _sums(values: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """Sums over the rows before each place: [s, ...] -> [C, ...]."""
    return np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])[places]


def _merged(y: Tensor, weights: Tensor, places: Sequence[int]) -> np.ndarray:
    """The error of row 0 and the rows from each place on around their mean, float64 [C, D]."""
    rows, w = y.double().numpy(), weights.double().numpy()[:, None]

    def tails(values: np.ndarray) -> np.ndarray:
        return values.sum(0) - _sums(values, places) + values[0]

    weight, first, second = tails(w), tails(w * rows), tails(w * rows * rows)
    return np.maximum(second - first * first / np.maximum(weight, np.finfo(np.float64).tiny), 0)
