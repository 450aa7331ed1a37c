"""Rows as codes: an id is a few small numbers, each of which picks a row of a codebook."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, FieldReport, GroupSpec, Stats
from recsys_emb.embeddings.composed import starts_of
from recsys_emb.embeddings.counts import per_id, split_ids
from recsys_emb.embeddings.posttraining._decoding import decode, expanded, level_table
from recsys_emb.embeddings.posttraining._levels import Layout, TableForm, given_forms, spend
from recsys_emb.embeddings.posttraining._table_fit import TableFit, seen_ids
from recsys_emb.embeddings.posttraining.base import PostTraining, Sensitivity, register
from recsys_emb.errors import SettingError

DEFAULT_RATIO = 0.05


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
        ``collection.compact("pq", budget=0.02, stats=counts)``, ``recsys-emb compact RUN --method pq --budget 0.02``.
    """

    summary = "rows as packed codes of a few bits, into codebooks fitted by k-means"
    Config = PQConfig
    fitted = ("tables",)
    uses_sensitivity = True
    codes: Tensor
    books: Tensor
    kept: Tensor

    def __init__(self, spec: GroupSpec, config: PQConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.tables is not None
        forms, layout = config.tables, _layout(spec, config)
        if len(forms) != len(spec.tables):
            raise ValueError(f"tables: one form for each of {len(spec.tables)}, got {len(forms)}")
        if any(form.width > layout.dim or form.ids[0] > t.num_embeddings for form, t in zip(forms, spec.tables)):
            raise ValueError("tables: a form has more columns or ids than its table")
        self.layout = layout
        self.coded, kept = [form for form in forms if form.width], [form.ids[0] for form in forms if not form.width]
        code_bytes, floats = (sum(map(size, self.coded)) for size in (layout.code_bytes, layout.floats))
        self.register_buffer("codes", torch.empty(code_bytes, dtype=torch.uint8, device=device))
        self.register_buffer("books", torch.empty(floats, dtype=torch.float16, device=device))
        self.register_buffer("kept", torch.empty(sum(kept), layout.dim, dtype=torch.float16, device=device))
        self.levels = level_table(self.coded)
        self._read: tuple[Tensor, int, Tensor] | None = None
        self.kept_ids, self.kept_starts = torch.tensor(kept, dtype=torch.int64), starts_of(kept)
        # Tables beside each other that are looked up in one go: whether they are coded, and how many they are.
        self.runs = [(coded, len(list(run))) for coded, run in groupby(bool(form.width) for form in forms)]

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        per_run, start = [], 0
        for _, tables in self.runs:
            per_run.append([counts[t] for t in range(start, start + tables)])
            start += tables
        pieces = split_ids(ids, [sum(c) for c in per_run])
        books = self._codebook_rows()
        out, at = [], [0, 0]
        for (coded, tables), piece, count in zip(self.runs, pieces, per_run):
            part = slice(at[coded], at[coded] + tables)
            at[coded] += tables
            if coded:
                out.append(decode(self.codes, books, self.levels[part], piece, count))
            else:
                limit, first = (per_id(x[part], count, piece) for x in (self.kept_ids, self.kept_starts))
                out.append(self.array("kept").index_select(0, first + torch.where(piece < limit, piece, 0)).float())
        return out[0] if len(out) == 1 else torch.cat(out)

    def codebook_rows(self) -> Tensor:
        """The rows of all codebooks in D columns, table after table and level after level, float32 [R, D]."""
        if not self.coded:
            return self.array("books").float().view(0, self.layout.dim)
        floats = self.array("books").split([self.layout.floats(form) for form in self.coded])
        return torch.cat([expanded(self.layout, form, part) for form, part in zip(self.coded, floats)])

    def _codebook_rows(self) -> Tensor:
        """``codebook_rows``, made anew only when the codebooks have changed."""
        books = self.array("books")
        if books.requires_grad or books.is_meta or books.is_inference() or torch.compiler.is_compiling():
            return self.codebook_rows()
        if self._read is None or self._read[0] is not books or self._read[1] != books._version:
            self._read = books, books._version, self.codebook_rows()
        return self._read[2]

    # -- fitting ------------------------------------------------------------------------------------------------------

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: PQConfig, stats: Stats | None = None) -> int:
        _check_levels(spec, config)
        layout, total = _layout(spec, config), 0
        for table in spec.tables:
            seen = seen_ids(stats[table.name]) if stats and table.name in stats else table.num_embeddings
            levels = (config.levels or {}).get(table.name, 0)
            forms = given_forms(layout, seen, _bits(config), levels) if levels else [TableForm(width=0, ids=(1,))]
            total += min(map(layout.nbytes, forms))
        return total

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
        limit = int(DEFAULT_RATIO * spec.full_bytes) if budget is None else budget
        counts, costs, levels = stats or {}, sensitivity or {}, config.levels or {}
        names = [table.name for table in spec.tables]
        fits = [
            TableFit(trained, t, layout, counts.get(name), costs.get(name), config.seed) for t, name in enumerate(names)
        ]
        options = [fit.options(_bits(config), levels.get(name), limit) for fit, name in zip(fits, names)]
        if budget is None:  # levels that were asked for are there in full
            limit = max(limit, sum(o[-1 if name in levels else 0].nbytes for o, name in zip(options, names)))
        forms = tuple(option.form for option in spend(options, limit))
        stored = [fit.stored(form, config.restarts) for fit, form in zip(fits, forms)]
        books, kept = ([x for form, (_, x) in zip(forms, stored) if bool(form.width) is c] for c in (True, False))
        none = torch.empty(0, dtype=torch.float16)
        arrays = {
            "codes": torch.cat([codes for codes, _ in stored]),
            "books": torch.cat([none, *books]),
            "kept": torch.cat([none, *kept]).view(-1, layout.dim),
        }
        sized = config.model_copy(update={"tables": forms})
        return cls.filled(spec, sized, {name: array.to(trained.device) for name, array in arrays.items()})

    def describe(self) -> list[FieldReport]:
        assert self.config.tables is not None
        return [
            FieldReport(t.name, t.num_embeddings, f.ids[0], f.width or self.layout.dim, self.layout.nbytes(f), _said(f))
            for t, f in zip(self.spec.tables, self.config.tables)
        ]


def _layout(spec: GroupSpec, config: PQConfig) -> Layout:
    product = config.codes == "product"
    return Layout(spec.embedding_dim, product, config.rotation or not product)


def _bits(config: PQConfig) -> Sequence[int]:
    return range(1, 9) if config.bits is None else (config.bits,)


def _check_levels(spec: GroupSpec, config: PQConfig) -> None:
    names, most = [t.name for t in spec.tables], _layout(spec, config).most_levels()
    for name, count in (config.levels or {}).items():
        if name not in names:
            raise SettingError(f"options.levels.{name}", f"no such table; allowed: {', '.join(names)}")
        if not 0 <= count <= most:
            raise SettingError(f"options.levels.{name}", f"{count}; allowed: 0 (one row for all) to {most}")


def _said(form: TableForm) -> str:
    if not form.width:
        return "one row" if form.ids[0] == 1 else "kept in fp16"
    return " + ".join(f"{b} bits" for b in form.bits)
