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
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.posttraining._levels import Layout, TableForm, spend, uniform
from recsys_emb.embeddings.posttraining._packing import packed_bytes, unpack
from recsys_emb.embeddings.posttraining._table_fit import TableFit, expanded
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
        self.kept = torch.tensor([form.width == 0 for form in forms])

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        ids = torch.where(ids < per_id(self.covered[:, 0], counts, ids), ids, 0)
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
            parts.append(expanded(self.layout, form, books))
        return torch.cat([*parts, flat.new_zeros(1, self.layout.dim)])

    # -- fitting ------------------------------------------------------------------------------------------------------

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: PQConfig, stats: Stats | None = None) -> int:
        _check_levels(spec, config)
        layout, levels = _layout(spec, config), config.levels or {}
        one_row = TableForm(width=0, ids=(1,))
        smallest = (
            uniform(layout, t.num_embeddings, config.bits or 1, levels[t.name]) if levels.get(t.name) else one_row
            for t in spec.tables
        )
        return sum(map(layout.nbytes, smallest))

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
        tables = [_table_fit(trained, t, config, stats, sensitivity) for t in range(len(spec.tables))]
        wanted = [(config.levels or {}).get(t.name) for t in spec.tables]
        options = [t.options(layout, config.bits, n, budget, generator) for t, n in zip(tables, wanted)]
        chosen = spend(options, budget)
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


def _table_fit(
    trained: EmbeddingBackend[Any], table: int, config: PQConfig, stats: Stats | None, sensitivity: Sensitivity | None
) -> TableFit:
    name = trained.spec.tables[table].name
    counts, metric = (stats or {}).get(name), (sensitivity or {}).get(name)
    return TableFit(trained, table, config.codes == "residual" or config.rotation, counts, metric)


def _layout(spec: GroupSpec, config: PQConfig) -> Layout:
    return Layout(spec.embedding_dim, config.codes == "product", config.rotation)


def _check_levels(spec: GroupSpec, config: PQConfig) -> None:
    names, most = [t.name for t in spec.tables], spec.embedding_dim if config.codes == "product" else 32
    for name, count in (config.levels or {}).items():
        if name not in names:
            raise SettingError(f"options.levels.{name}", f"no such table; allowed: {', '.join(names)}")
        if not 0 <= count <= most:
            raise SettingError(f"options.levels.{name}", f"{count}; allowed: 0 (one row for all) to {most}")


def _said(form: TableForm) -> str:
    if not form.width:
        return "one row" if form.ids[0] == 1 else "kept in fp16"
    return " + ".join(f"{b} bits" for b in form.bits)
