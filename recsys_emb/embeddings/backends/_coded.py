"""Tables whose rows are codes once they are trained: what is trained of them.

n looked-up ids, T tables, L levels of K = 2^b cells, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.backends._cells import Codebooks, in_half
from recsys_emb.embeddings.backends._choice import choose, mixed, taken
from recsys_emb.embeddings.base import GroupSpec
from recsys_emb.embeddings.composed import OwnRows, Part, SizedConfig, own_table, project
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.posttraining._levels import Layout, TableForm
from recsys_emb.embeddings.posttraining._packing import pack

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


def layout_of(spec: GroupSpec, config: QuantisedConfig) -> Layout:
    """What is the same for all tables."""
    return Layout(spec.embedding_dim, *config.layout)


class HalfPart(Part):
    """Full tables that are served in float16."""

    def __init__(self, tables: Sequence[int], spec: GroupSpec, device: torch.device | str | None) -> None:
        chosen = [spec.tables[t] for t in tables]
        sizes = [t.num_embeddings for t in chosen]
        super().__init__(tables, OwnRows(sizes), own_table(chosen, spec.embedding_dim, device), rows=sizes)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows = super().forward(ids, counts)
        return rows if self.training else in_half(rows)


class Seen(NamedTuple):
    """What the last lookup gave, for the step that follows.

    queries, vectors: float32 [n, D], rows and what took their place.
    turned: float32 [n, D], queries as codebooks see them.
    chosen: int64 [n, L], the cells.
    """

    queries: Tensor
    vectors: Tensor
    turned: Tensor
    chosen: Tensor


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
        self.bits, self.columns = form.bits[0], layout.columns(form)
        summands = 1 if product else form.ids.count(form.ids[0])  # of the rarest id
        stds = [t.init_std / summands**0.5 for t in chosen]
        mapped, keyed = config.collapse == "linear", config.by_product
        self.codebooks = Codebooks(
            stds, self.columns, self.bits, spec.embedding_dim, product, turned, mapped, keyed, device
        )
        ids = torch.tensor([form.ids for form in self.forms])
        self.covered = None if bool((ids == ids[:, :1]).all()) else ids
        self.first_cells = torch.arange(len(self.tables)) << self.bits
        self._seen: Seen | None = None

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        queries, cells = self.table(self.transform(ids, counts)), self.codebooks
        books, rotation = cells.by_level(cells.stored()), None if cells.turn is None else cells.rotation()
        turned = queries if rotation is None else project(queries, rotation.transpose(1, 2), counts)
        chosen = self.choose(ids, turned.detach(), books, counts)
        vectors = taken(books, chosen, cells.product)
        vectors = vectors if rotation is None else project(vectors, rotation, counts)
        if not self.training:
            self._seen = None
            return vectors
        tracing = isinstance(queries, torch.fx.Proxy)
        self._seen = None if tracing else Seen(queries, vectors, turned.detach(), chosen)
        soft = queries
        if cells.keys is not None:
            values = [book.detach() for book in books]
            soft = mixed(turned, cells.by_level(cells.keys), values, self.columns, counts)
            soft = soft if rotation is None else project(soft, rotation.detach(), counts)
        return vectors + soft - soft.detach()

    def choose(self, ids: Tensor, turned: Tensor, books: list[Tensor], counts: Sequence[int]) -> Tensor:
        """The numbers of each id's cells, among those of their level, int64 [n, L]; T K stands for none."""
        by = books if self.codebooks.keys is None else self.codebooks.by_level(self.codebooks.keys)
        rows, by = self.transform(ids, counts), [book.detach() for book in by]
        found = choose(turned, rows, by, self.columns, counts, self.config.by_product)
        found = found + per_id(self.first_cells, counts, ids)[:, None]
        if self.covered is None:
            return found
        limits = torch.stack([per_id(limit, counts, ids) for limit in self.covered.unbind(1)], dim=1)
        return torch.where(ids[:, None] < limits, found, len(self.tables) << self.bits)

    # -- training -----------------------------------------------------------------------------------------------------

    def distance(self) -> Tensor | None:
        """What draws rows and cells to each other: the mean over the ids of the last lookup, times the tables."""
        if self._seen is None:
            return None
        queries, vectors = self._seen.queries, self._seen.vectors
        to_cells = (queries - vectors.detach()).square().sum()
        to_rows = (queries.detach() - vectors).square().sum()
        return (self.config.commitment * to_cells + to_rows) * (len(self.tables) / max(1, len(queries)))

    @torch.no_grad()
    def after_step(self, step: int, total: Callable[[Tensor], Tensor]) -> None:
        """Counts the cells that were taken; from time to time those that were not become rows of the last lookup.

        Args:
            step: the number of the step.
            total: sums over the processes that train together.
        """
        seen, self._seen = self._seen, None
        if seen is None or self.config.by_product or self.config.collapse not in (None, "reset"):
            return
        used = self.codebooks.used  # [L, T, K]
        times = used.new_zeros(len(used), used[0].numel() + 1)  # bincount would wait for a card
        times.scatter_add_(1, seen.chosen.t(), times.new_ones(()).expand_as(seen.chosen.t()))
        used += total(times[:, :-1].reshape(used.shape))
        if (step + 1) % self.config.reset_every == 0:
            rows = self._missed(seen)
            for row in rows:
                self.table.agree(row)  # each process has looked up others
            self.codebooks.revive(rows)

    def _missed(self, seen: Seen) -> list[Tensor]:
        """What levels before leave of random rows of the last lookup, of each level [T, K, d_l]."""
        books, rest = self.codebooks.by_level(self.codebooks.stored()), seen.turned
        rows = []
        for (first, end), book, cells in zip(self.columns, books, seen.chosen.unbind(1)):
            new = book.clone()
            for t, of_table in enumerate(new):
                mine = (cells >> self.bits == t).nonzero()[:, 0]
                if len(mine):
                    drawn = mine[torch.randint(len(mine), (1 << self.bits,), device=mine.device)]
                    of_table.copy_(rest[drawn, first:end])
            rows.append(new)
            if not self.codebooks.product:
                rest = rest - taken([book], cells[:, None], side_by_side=True)
        return rows

    # -- what is served -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def stored(self, chunk: int = 1 << 18) -> tuple[list[Tensor], list[Tensor]]:
        """Each table's packed codes, uint8, and its codebooks, float16; in evaluation mode."""
        assert self.rows is not None
        cells, largest, codes = self.codebooks, (1 << self.bits) - 1, []
        books = cells.by_level(cells.stored())
        back = None if cells.turn is None else cells.rotation().transpose(1, 2)
        for t, (size, form) in enumerate(zip(self.rows, self.forms)):
            found = []
            for ids in torch.arange(size, device=cells.used.device).split(chunk):
                counts = [0] * len(self.tables)
                counts[t] = len(ids)
                queries = self.table(self.transform(ids, counts))
                turned = queries if back is None else project(queries, back, counts)
                found.append((self.choose(ids, turned, books, counts) & largest).to(torch.uint8))
            of_table = torch.cat(found)
            codes += [pack(of_table[:n, level], self.bits) for level, n in enumerate(form.ids)]
        return codes, [cells.floats(t) for t in range(len(self.tables))]
