"""Rows that become codes while they are trained: what ``dpq`` and ``mgqe`` have in common.

N ids, D columns, L levels of a code each, K = 2^b cells, T tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.backends._cells import Codebooks, choose, in_half, mixed, summed
from recsys_emb.embeddings.base import FieldReport, GroupSpec, Stats, StorageItem
from recsys_emb.embeddings.composed import (
    ComposedBackend,
    OwnRows,
    Part,
    SizedConfig,
    check_length,
    own_table,
    size_error,
)
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.posttraining._levels import Layout, TableForm
from recsys_emb.embeddings.posttraining._packing import pack
from recsys_emb.embeddings.posttraining.base import saturated
from recsys_emb.embeddings.posttraining.pq import PQ, PQConfig
from recsys_emb.errors import SettingError

MOST_BITS = 6
"""Of a code that a budget chooses: a step compares every looked-up id with all cells."""


class QuantisedConfig(SizedConfig):
    """Options of both."""

    levels: int | None = Field(None, ge=1, description="codes of an id, b / 8 bytes each; absent: by the budget")
    bits: int | None = Field(
        None,
        ge=1,
        le=8,
        description=f"b of a code, 2^b cells; more: larger codebooks, slower steps; absent: by the budget, "
        f"{MOST_BITS} at most",
    )
    commitment: float = Field(
        0.25, ge=0, description="vq: how strongly rows are drawn to their cells, beside how cells are drawn to rows"
    )
    collapse: Literal["reset", "linear", "ignore"] | None = Field(
        None,
        description="vq: what is done against cells that no row takes; reset (the default): they become rows that were "
        "looked up; linear: all cells are fixed behind one learned linear map; ignore: nothing; no effect on size",
    )
    reset_every: int = Field(100, ge=1, description="steps after which unused cells are reset")
    tables: tuple[TableForm, ...] | None = Field(
        None, description="how each table is stored, in place of levels and bits; absent: by the budget"
    )

    @property
    def sized(self) -> bool:
        return self.tables is not None

    @property
    def layout(self) -> tuple[bool, bool]:
        """Whether levels share out the columns, and whether these are turned."""
        return False, False

    @property
    def by_product(self) -> bool:
        """Cells have keys, and that with the largest product is chosen."""
        return False


Q = TypeVar("Q", bound=QuantisedConfig)


class QuantisedBackend(ComposedBackend[Q]):
    """Trains a row for every id, which a lookup replaces by the sum of a cell of each of its codebooks. What is served
    are packed codes and codebooks in float16 (:class:`PQ`), which is what evaluation sees. A table that takes no more
    so is kept in float16."""

    default_ratio = 0.05

    def __init__(self, spec: GroupSpec, config: Q, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.tables is not None
        plain = [t for t, form in enumerate(config.tables) if not form.width]
        coded = [t for t, form in enumerate(config.tables) if form.width]
        self.parts = nn.ModuleDict()
        if plain:
            self.parts["plain"] = HalfPart(plain, spec, device)
        if coded:
            self.parts["coded"] = CodedPart(coded, spec, config, device)

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def covered(cls, ids: int, levels: int, config: Q) -> tuple[int, ...]:
        """How many ids of a table each level has a code for, falling; the first has one for all."""
        return (ids,) * levels

    @classmethod
    def checked(cls, spec: GroupSpec, config: Q) -> Q:
        most = layout_of(spec, config).most_levels()
        if config.levels is not None and config.levels > most:
            raise SettingError("options.levels", f"{config.levels} is too many; allowed: 1 to {most}")
        if config.tables is None:
            return config
        check_length("tables", spec, config.tables)
        shapes = {form.bits for form in config.tables if form.width}
        for table, form in zip(spec.tables, config.tables):
            levels = len(form.bits)
            ids = cls.covered(table.num_embeddings, levels, config) if form.width else (table.num_embeddings,)
            alike = len(shapes) <= 1 and len(set(form.bits)) <= 1 and levels <= most
            if form.width not in (0, spec.embedding_dim) or form.ids != ids or not alike:
                allowed = f"width 0 or {spec.embedding_dim}, ids {list(ids)}, the same bits everywhere"
                raise size_error("tables", table, form.model_dump(), allowed)
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: Q, stats: Stats | None) -> Q:
        layout = layout_of(spec, config)
        choices = [cls._forms(spec, config, levels, bits) for levels, bits in _shapes(spec, config)]
        return config.model_copy(update={"tables": min(choices, key=lambda forms: sum(map(layout.nbytes, forms)))})

    @classmethod
    def size(cls, spec: GroupSpec, config: Q, budget: int, stats: Stats | None) -> Q:
        layout = layout_of(spec, config)

        def size(forms: Sequence[TableForm]) -> int:
            return sum(map(layout.nbytes, forms))

        def worth(forms: tuple[TableForm, ...]) -> int:
            """Bytes that tell ids apart."""
            return sum(layout.code_bytes(form) if form.width else layout.nbytes(form) for form in forms)

        choices = [cls._forms(spec, config, levels, bits) for levels, bits in _shapes(spec, config)]
        best = max((forms for forms in choices if size(forms) <= budget), key=worth)
        forms = list(best)
        left = budget - size(forms) if config.levels is config.bits is None else 0
        for t in sorted(range(len(forms)), key=lambda t: spec.tables[t].num_embeddings):
            plain = TableForm(width=0, ids=(spec.tables[t].num_embeddings,))
            if (cost := layout.nbytes(plain) - layout.nbytes(forms[t])) <= left:
                forms[t], left = plain, left - cost
        return config.model_copy(update={"tables": tuple(forms)})

    @classmethod
    def _forms(cls, spec: GroupSpec, config: Q, levels: int, bits: int) -> tuple[TableForm, ...]:
        """Each table in codes, or as it is where that takes no more."""
        layout, forms = layout_of(spec, config), []
        for ids in (t.num_embeddings for t in spec.tables):
            covered = cls.covered(ids, levels, config)
            coded = TableForm(width=spec.embedding_dim, bits=(bits,) * levels, ids=covered)
            forms.append(min(TableForm(width=0, ids=(ids,)), coded, key=layout.nbytes))
        return tuple(forms)

    def storage(self) -> list[StorageItem]:
        return self._served("meta").storage()

    def describe(self) -> list[FieldReport]:
        return self._served("meta").describe()

    # -- training -----------------------------------------------------------------------------------------------------

    def aux_loss(self) -> Tensor | None:
        return None if self.config.by_product or self.coded is None else self.coded.distance()

    def after_step(self, step: int) -> None:
        if self.coded is not None:
            self.coded.after_step(step)

    @property
    def coded(self) -> CodedPart | None:
        """The tables that are stored as codes."""
        return cast(CodedPart, self.parts["coded"]) if "coded" in self.parts else None

    # -- what is served -----------------------------------------------------------------------------------------------

    def _served(self, device: torch.device | str) -> PQ:
        product, turned = self.config.layout
        codes: Literal["product", "residual"] = "product" if product else "residual"
        return PQ(self.spec, PQConfig(codes=codes, rotation=turned, tables=self.config.tables), device)

    @torch.no_grad()
    def compact(self) -> PQ:
        served, was_training = self._served("meta"), self.training
        self.eval()
        codes, floats = self.coded.stored() if self.coded is not None else ([], [])
        kept = [saturated(torch.cat(list(self.rows(t))), torch.float16) for t in self._plain_tables()]
        self.train(was_training)
        empty = {name: torch.empty(0, dtype=t.dtype, device=self.device) for name, t in served.state_dict().items()}
        arrays = {
            "codes": torch.cat([empty["codes"], *codes]),
            "books": torch.cat([empty["books"], *floats]),
            "kept": torch.cat([empty["kept"].view(0, self.spec.embedding_dim), *kept]),
        }
        return PQ.filled(self.spec, served.config, arrays).eval()

    def _plain_tables(self) -> list[int]:
        return cast(Part, self.parts["plain"]).tables if "plain" in self.parts else []


class HalfPart(Part):
    """Full tables that are served in float16."""

    def __init__(self, tables: Sequence[int], spec: GroupSpec, device: torch.device | str | None) -> None:
        chosen = [spec.tables[t] for t in tables]
        sizes = [t.num_embeddings for t in chosen]
        super().__init__(tables, OwnRows(sizes), own_table(chosen, spec.embedding_dim, device), rows=sizes)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows = super().forward(ids, counts)
        return rows if self.training else in_half(rows)


class CodedPart(Part):
    """Tables whose looked-up rows are replaced by cells."""

    def __init__(
        self, tables: Sequence[int], spec: GroupSpec, config: QuantisedConfig, device: torch.device | str | None
    ) -> None:
        assert config.tables is not None
        chosen, self.forms = [spec.tables[t] for t in tables], [config.tables[t] for t in tables]
        sizes = [t.num_embeddings for t in chosen]
        super().__init__(tables, OwnRows(sizes), own_table(chosen, spec.embedding_dim, device), rows=sizes)
        self.config, form = config, self.forms[0]
        layout, (product, turned) = layout_of(spec, config), config.layout
        self.levels, self.bits = len(form.bits), form.bits[0]
        summands = 1 if product else form.ids.count(form.ids[0])  # of the rarest id
        self.codebooks = Codebooks(
            [t.init_std / summands**0.5 for t in chosen],
            self.levels,
            self.bits,
            layout.columns(form),
            spec.embedding_dim,
            product,
            turned,
            config.collapse == "linear",
            config.by_product,
            device,
        )
        ids = torch.tensor([form.ids for form in self.forms])
        self.covered = None if bool((ids == ids[:, :1]).all()) else ids
        self._seen: tuple[Tensor, Tensor, Tensor] | None = None

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        queries, cells = self.table(self.transform(ids, counts)), self.codebooks()
        chosen = self.choose(ids, queries, cells, counts)
        vectors = summed(cells.flatten(0, 2), chosen)
        if not self.training:
            self._seen = None
            return vectors
        self._seen = None if isinstance(queries, torch.fx.Proxy) else (queries, vectors, chosen)
        soft = queries
        if self.config.by_product:
            soft = mixed(queries, self.codebooks.key_rows(), cells.detach(), counts)
        return vectors + soft - soft.detach()

    def choose(self, ids: Tensor, queries: Tensor, cells: Tensor, counts: Sequence[int]) -> Tensor:
        """The numbers of each id's cells, among those of all tables and levels, int64 [n, L]; T L K stands for none."""
        by = self.codebooks.key_rows() if self.config.by_product else cells
        found = choose(queries.detach(), by.detach(), counts, self.config.by_product)
        step, tables = self.levels << self.bits, len(self.tables)
        found = found + (torch.arange(self.levels, device=ids.device) << self.bits)
        found = found + per_id(torch.arange(tables) * step, counts, ids)[:, None]
        if self.covered is None:
            return found
        limits = torch.stack([per_id(limit, counts, ids) for limit in self.covered.unbind(1)], dim=1)
        return torch.where(ids[:, None] < limits, found, tables * step)

    # -- training -----------------------------------------------------------------------------------------------------

    def distance(self) -> Tensor | None:
        """What draws rows and cells to each other: the mean over the ids of the last lookup, times the tables."""
        if self._seen is None:
            return None
        queries, vectors, _ = self._seen
        to_cells = (queries - vectors.detach()).square().sum()
        to_rows = (queries.detach() - vectors).square().sum()
        return (self.config.commitment * to_cells + to_rows) * (len(self.tables) / max(1, len(queries)))

    def after_step(self, step: int) -> None:
        """Counts the cells that were taken; from time to time those that were not become rows of the last lookup."""
        if self._seen is None or self.config.by_product or self.config.collapse not in (None, "reset"):
            return
        queries, _, chosen = (tensor.detach() for tensor in self._seen)
        self._seen = None
        self.codebooks.used += self.table.total(self._times_taken(chosen))
        if (step + 1) % self.config.reset_every == 0:
            self._reset(queries, chosen)

    def _times_taken(self, chosen: Tensor) -> Tensor:
        """How often each cell was chosen, float32 [T, L, K]."""
        used = self.codebooks.used
        return torch.bincount(chosen.flatten(), minlength=used.numel() + 1)[:-1].view_as(used).to(used.dtype)

    @torch.no_grad()
    def _reset(self, queries: Tensor, chosen: Tensor) -> None:
        """Makes unused cells anew: what levels before leave of random rows of their table that were looked up."""
        used = self.codebooks.used
        cells = self.codebooks()
        rows = cells.clone()
        flat = torch.cat([cells.flatten(0, 2), cells.new_zeros(1, cells.shape[3])])
        table = chosen[:, 0] // (self.levels << self.bits)
        for t in range(len(self.tables)):
            mine = (table == t).nonzero()[:, 0]
            if not len(mine):
                continue
            rest = queries[mine]
            for level in range(self.levels):
                has = (chosen[mine, level] < len(flat) - 1).nonzero()[:, 0]
                if len(has):
                    drawn = torch.randint(len(has), (1 << self.bits,), device=has.device)
                    rows[t, level] = rest[has[drawn]]
                rest = rest - flat[chosen[mine, level]]
        self.table.agree(rows)  # each process has looked up others
        self.codebooks.revive(used == 0, rows)
        used.zero_()

    # -- what is served -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def stored(self, chunk: int = 1 << 18) -> tuple[list[Tensor], list[Tensor]]:
        """Each table's packed codes, uint8, and its codebooks, float16; in evaluation mode."""
        assert self.rows is not None
        cells, largest = self.codebooks(), (1 << self.bits) - 1
        codes = []
        for t, (size, form) in enumerate(zip(self.rows, self.forms)):
            found = []
            for ids in torch.arange(size, device=cells.device).split(chunk):
                counts = [0] * len(self.tables)
                counts[t] = len(ids)
                queries = self.table(self.transform(ids, counts))
                found.append((self.choose(ids, queries, cells, counts) & largest).to(torch.uint8))
            of_table = torch.cat(found)
            codes += [pack(of_table[:n, level], self.bits) for level, n in enumerate(form.ids)]
        return codes, [self.codebooks.floats(t) for t in range(len(self.tables))]


def layout_of(spec: GroupSpec, config: QuantisedConfig) -> Layout:
    """What is the same for all tables."""
    return Layout(spec.embedding_dim, *config.layout)


def _shapes(spec: GroupSpec, config: QuantisedConfig) -> list[tuple[int, int]]:
    """Levels and bits that a budget chooses from, most bits first."""
    most = layout_of(spec, config).most_levels()
    levels = range(1, most + 1) if config.levels is None else (config.levels,)
    bits = range(MOST_BITS, 0, -1) if config.bits is None else (config.bits,)
    return [(n, b) for b in bits for n in levels]
