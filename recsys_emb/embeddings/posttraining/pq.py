"""Rows as codes: an id is a few small numbers, each of which picks a row of a codebook."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, FieldReport, GroupSpec, Stats
from recsys_emb.embeddings.composed import project
from recsys_emb.embeddings.counts import per_id
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
    spend,
    useful,
)
from recsys_emb.embeddings.posttraining._packing import pack, packed_bytes, unpack
from recsys_emb.embeddings.posttraining.base import PostTraining, Sensitivity, register
from recsys_emb.errors import SettingError

DEFAULT_RATIO = 0.05
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1)
"""Of the ids that training saw: where a level of codes may end."""
MOST_LEVELS = 12
TRIED_ROWS = 1 << 12
"""Rows of a table on which forms are compared; the chosen one is fitted on more."""
UNSEEN_WEIGHT = 0.1
"""What an id that training never saw counts beside the occurrences of the others."""


class PQConfig(BackendConfig):
    """Options of ``pq``."""

    codes: Literal["residual", "product"] = Field(
        "residual",
        description="residual: codebooks of whole rows that are summed, each of what those before leave; product: each "
        "of some columns, side by side; the same bytes of codes, smaller codebooks, larger errors",
    )
    rotation: bool = Field(
        True, description="product: turn the columns to their principal axes first; residual codes always are"
    )
    bits: int | None = Field(
        None, ge=1, le=8, description="of a code; more: fewer levels and larger codebooks; absent: what errs least"
    )
    levels: dict[str, int] | None = Field(
        None, description="codes of an id, by table name; absent, and of tables not named: what errs least"
    )
    seed: int = Field(0, description="of the starts of k-means; no effect on size")
    restarts: int = Field(3, ge=1, description="starts of k-means, of which the best is taken; slower")
    tables: tuple[TableForm, ...] | None = Field(None, description="what is stored of each table; found by fitting")


@register("pq")
class PQ(PostTraining[PQConfig]):
    """Residual quantisation (Chen, Guan, Wang, "Approximate Nearest Neighbor Search by Residual Vector Quantization",
    2010) or product quantisation (Jegou, Douze, Schmid, 2011; rotated: Ge, He, Ke, Sun, 2013) of trained rows.

    A row is the sum of L codebook rows (or has them side by side), each picked by a code of b bits: N L b / 8 bytes of
    packed codes, and 2 * 2^b bytes a column of a codebook, which are float16. The first-order column is coded with the
    vector. Codebooks come from k-means that counts an id as often as training saw it. What an error costs is its effect
    on the loss where that is known (:data:`Sensitivity`), else its square.

    Where ids are numbered by falling count, as encoders do, frequent ids have more codes than rare ones, and ids from
    some number on, those that training never saw among them, are stored as id 0 is, which then stands for their mean. A
    budget goes where a byte saves the most error, over tables, bits, widths of codebooks and numbers of ids. A table
    may also keep its first rows as they are, in float16. The least is one row for each table.

    Example:
        >>> collection.compact("pq", budget=0.02, stats=counts)  # doctest: +SKIP
    """

    summary = "rows as packed codes of a few bits, into codebooks fitted by k-means"
    Config = PQConfig
    fitted = ("tables",)
    uses_sensitivity = True
    codes: Tensor
    books: Tensor

    def __init__(self, spec: GroupSpec, config: PQConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.tables is not None
        forms, layout = config.tables, _layout(spec, config)
        if len(forms) != len(spec.tables):
            raise ValueError(f"tables: one form for each of {len(spec.tables)}, got {len(forms)}")
        if any(form.width > layout.dim or form.ids[0] > t.num_embeddings for form, t in zip(forms, spec.tables)):
            raise ValueError("tables: a form has more columns or ids than its table")
        self.layout = layout
        self.register_buffer("codes", torch.empty(sum(map(layout.code_bytes, forms)), dtype=torch.uint8, device=device))
        self.register_buffer("books", torch.empty(sum(map(layout.floats, forms)), dtype=torch.float16, device=device))
        # Per table and level: ids that have a code, its bits, its first byte, its codebook's first row among all.
        deepest = max(max(1, len(form.bits)) for form in forms)
        covered, bits, byte, row = np.zeros((4, len(forms), deepest), dtype=np.int64)
        at_byte = at_row = 0
        for t, form in enumerate(forms):
            for level, (n, b) in enumerate(zip(form.ids, form.bits or (0,))):
                covered[t, level], bits[t, level], byte[t, level], row[t, level] = n, b, at_byte, at_row
                at_byte += packed_bytes(n, b)
                at_row += 1 << b if form.width else n
        self.zeros = at_row  # the row behind those of all codebooks
        self.covered, self.bits, self.byte, self.row = (torch.from_numpy(x) for x in (covered, bits, byte, row))
        self.first = torch.from_numpy(covered[:, 0].copy())
        self.kept = torch.tensor([form.width == 0 for form in forms])

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        ids = torch.where(ids < per_id(self.first, counts, ids), ids, 0)
        kept = per_id(self.kept, counts, ids)
        picked = []
        for level in range(self.bits.shape[1]):
            covered, bits, byte, row = (
                per_id(x[:, level], counts, ids) for x in (self.covered, self.bits, self.byte, self.row)
            )
            coded = torch.where(ids < covered, ids, 0)
            code = unpack(self.codes, byte, coded, bits) if len(self.codes) else torch.zeros_like(ids)
            place = row + (torch.where(kept, ids, code) if level == 0 else code)
            picked.append(torch.where(ids < covered, place, self.zeros))
        return F.embedding_bag(torch.stack(picked, dim=1), self.codebook_rows(), norm_type=2.0, mode="sum")

    def codebook_rows(self) -> Tensor:
        """The rows of all codebooks in D columns, table after table and level after level, then zeros. [R + 1, D]"""
        assert self.config.tables is not None
        flat, parts = self.array("books").float(), []
        for form, books in zip(self.config.tables, flat.split([self.layout.floats(f) for f in self.config.tables])):
            parts.append(_expanded(self.layout, form, books))
        return torch.cat([*parts, flat.new_zeros(1, self.layout.dim)])

    # -- fitting ------------------------------------------------------------------------------------------------------

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: PQConfig, stats: Stats | None = None) -> int:
        _check_levels(spec, config)
        layout = _layout(spec, config)
        return sum(
            layout.nbytes(TableForm(width=0, ids=(1,))) if (config.levels or {}).get(t.name, 0) == 0 else
            layout.nbytes(_uniform(layout, t.num_embeddings, config.bits or 1, (config.levels or {})[t.name]))
            for t in spec.tables
        )  # fmt: skip

    @classmethod
    def fit(
        cls,
        trained: EmbeddingBackend[Any],
        config: PQConfig,
        budget: int | None = None,
        stats: Stats | None = None,
        sensitivity: Sensitivity | None = None,
    ) -> Self:
        spec, layout = trained.spec, _layout(trained.spec, config)
        if budget is None:
            budget = max(cls.min_bytes(spec, config, stats), int(DEFAULT_RATIO * spec.full_bytes))
        generator = torch.Generator().manual_seed(config.seed)
        tables = [_Table(trained, t, config, stats, sensitivity) for t in range(len(spec.tables))]
        chosen = spend([table.options(layout, config, budget, generator) for table in tables], budget)
        forms = tuple(option.form for option in chosen)
        codes, books = zip(*(t.stored(layout, f, generator, config.restarts) for t, f in zip(tables, forms)))
        arrays = {"codes": torch.cat(codes), "books": torch.cat(books)}
        sized = config.model_copy(update={"tables": forms})
        return cls.filled(spec, sized, {name: array.to(trained.device) for name, array in arrays.items()})

    def describe(self) -> list[FieldReport]:
        assert self.config.tables is not None
        return [
            FieldReport(t.name, t.num_embeddings, f.ids[0], f.width or self.layout.dim, self.layout.nbytes(f), _said(f))
            for t, f in zip(self.spec.tables, self.config.tables)
        ]


class _Table:
    """What fitting knows of one table: a sample of its rows, how much each counts, what errors cost."""

    def __init__(
        self,
        trained: EmbeddingBackend[Any],
        table: int,
        config: PQConfig,
        stats: Stats | None,
        sensitivity: Sensitivity | None,
    ) -> None:
        spec = trained.spec.tables[table]
        self.trained, self.table, self.name, self.n = trained, table, spec.name, spec.num_embeddings
        counts = None if stats is None else stats.get(spec.name)
        self.weights = np.ones(self.n) if counts is None else np.asarray(counts, dtype=np.float64) + UNSEEN_WEIGHT
        falling = counts is not None and bool((np.diff(np.asarray(counts)[1:]) <= 0).all())
        seen = int(np.asarray(counts).nonzero()[0].max(initial=0)) + 1 if counts is not None and falling else self.n
        self.cuts = sorted({max(1, round(seen * share)) for share in SHARES}) if falling else [self.n]
        self.rows = sample(trained, table, self.weights)
        dim = trained.spec.embedding_dim
        given = None if sensitivity is None else sensitivity.get(spec.name)
        self.metric = torch.eye(dim, dtype=torch.float64) if given is None else given.double()
        self.turned = config.codes == "residual" or config.rotation

    def space(self, rows: Sample) -> Space:
        return principal_space(rows, self.metric) if self.turned else column_space(self.metric)

    def options(self, layout: Layout, config: PQConfig, budget: int, generator: torch.Generator) -> list[Option]:
        """Forms that the table may take, the smallest of which is one row for all ids."""
        rows = self.rows.thinned(TRIED_ROWS)
        scale = float(self.weights.sum()) / float(rows.weights.sum())
        y = self.space(rows)(rows.rows)
        cuts = [*self.cuts]
        wanted = (config.levels or {}).get(self.name)
        merged = scale * _tails(rows, y, cuts)
        full = 2 * layout.dim * self.n
        found = [] if wanted else kept_options(layout, sorted({1, *cuts}), scale * _tails(rows, y, sorted({1, *cuts})))
        if wanted == 0:
            return found[:1]
        for bits in range(1, 9) if config.bits is None else (config.bits,):
            if 1 << bits >= self.n and config.bits is None:
                continue
            for width in self._widths(layout):
                most = wanted or MOST_LEVELS
                curves = self._curves(layout, rows, y, width, [bits] * most, cuts, min(full, budget), generator)
                if wanted:
                    form = _uniform(layout, cuts[-1], bits, wanted, width)
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
        missed = y[:, width:].square().sum(1)
        if layout.product:
            return self._product_curves(rows, y, bits, cuts, generator)
        out = [_heads(rows, y.square().sum(1), cuts)]
        for count, left in enumerate(levels(y[:, :width].contiguous(), rows.weights, bits, generator), 1):
            out.append(_heads(rows, left.square().sum(1) + missed, cuts))
            if layout.nbytes(_uniform(layout, cuts[0], bits[0], count + 1, width)) > most:
                break
        return out

    def _product_curves(
        self, rows: Sample, y: Tensor, bits: Sequence[int], cuts: Sequence[int], generator: torch.Generator
    ) -> list[np.ndarray]:
        """As ``_curves``; a product of L codes splits the columns in L parts, so each L is fitted for itself."""
        out, dim = [_heads(rows, y.square().sum(1), cuts)], y.shape[1]
        for count in range(1, min(len(bits), dim) + 1):
            form = TableForm(width=dim, bits=tuple(bits[:count]), ids=(cuts[-1],) * count)
            layout = Layout(dim, True, self.turned)
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
            return torch.empty(0, dtype=torch.uint8), _half(kept).flatten()
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


def _layout(spec: GroupSpec, config: PQConfig) -> Layout:
    return Layout(spec.embedding_dim, config.codes == "product", config.rotation)


def _uniform(layout: Layout, ids: int, bits: int, levels: int, width: int | None = None) -> TableForm:
    """All ids with the same number of codes."""
    return TableForm(width=width or layout.dim, bits=(bits,) * levels, ids=(ids,) * levels)


def _check_levels(spec: GroupSpec, config: PQConfig) -> None:
    names, most = [t.name for t in spec.tables], spec.embedding_dim if config.codes == "product" else 32
    for name, count in (config.levels or {}).items():
        if name not in names:
            raise SettingError(f"options.levels.{name}", f"no such table; allowed: {', '.join(names)}")
        if not 0 <= count <= most:
            raise SettingError(f"options.levels.{name}", f"{count}; allowed: 0 (one row for all) to {most}")


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
        small = [_half(book) for book in books]
        flat = [*(book.flatten() for book in small), _half(space.mean), _half(space.back[: form.width]).flatten()]
        return torch.cat(flat), [book.float() for book in small]
    back, into = space.back, space.into
    stored, read = [], []
    for level, (book, (first, end)) in enumerate(zip(books, layout.columns(form))):
        shift = space.mean if level == 0 and not layout.product else torch.zeros_like(space.mean)
        if layout.product:  # columns as they are, stretched
            plain = _half(book * back.diagonal()[first:end])
            read.append(plain.float() * into.diagonal()[first:end])
        else:
            plain = _half(book @ back + shift)
            read.append((plain.float() - shift) @ into)
        stored.append(plain.flatten())
    return torch.cat(stored), read


def _expanded(layout: Layout, form: TableForm, books: Tensor) -> Tensor:
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


def _half(x: Tensor) -> Tensor:
    largest = torch.finfo(torch.float16).max
    return x.clamp(-largest, largest).half()


def _said(form: TableForm) -> str:
    if not form.width:
        return "one row" if form.ids[0] == 1 else "kept in fp16"
    return " + ".join(f"{b} bits" for b in form.bits)
