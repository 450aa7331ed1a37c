"""One width per table, given by hand, by a search, or by the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.base import GroupSpec, Stats, register
from recsys_emb.embeddings.composed import ComposedBackend, OwnRows, Part, SizedConfig
from recsys_emb.embeddings.nested import by_width, narrow, narrow_init, widen
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.errors import SettingError, UserError


class FieldDimConfig(SizedConfig):
    """Options of ``field_dim``."""

    widths: dict[str, Annotated[int, Field(ge=0)]] | None = Field(
        None, description="columns by table name, 0 to D; 0: the field is left out; absent: by the budget"
    )
    default_width: int | None = Field(
        None, ge=0, description="columns of the tables that widths does not name; absent: D"
    )

    @property
    def sized(self) -> bool:
        return self.widths is not None or self.default_width is not None


@register("field_dim")
class FieldDimBackend(ComposedBackend[FieldDimConfig]):
    """Rows of w_t columns in table t, padded with zeros to D; nothing is projected: 4 * sum n_t w_t bytes.

    What a search over widths tunes, and what nested training is cut to. A first-order column is kept at every width but
    0: there the table stores nothing and its ids have the vector zero, so that a field can be left out altogether.

    Without widths the budget decides: the largest uniform width that fits, at least 1; then tables grow to the next
    power of two, in rounds from the smallest table on, as there is room. A small table's columns cost the least, and
    each of its rows is seen most often in training. Without a budget: D columns.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "field_dim", budget=0.1).serving_bytes()
        40000
    """

    summary = "one width per table, zero-padded to D; 0 leaves a field out"

    Config = FieldDimConfig
    grows = True
    default_ratio = 1.0

    def __init__(self, spec: GroupSpec, config: FieldDimConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.parts = self._build(device)

    def _build(self, device: torch.device | str | None) -> nn.ModuleDict:
        assert self.config.widths is not None
        widths = [self.config.widths[t.name] for t in self.spec.tables]
        parts = {f"width_{w}": PaddedPart(tables, w, self.spec, device) for w, tables in by_width(widths).items()}
        return nn.ModuleDict(parts)

    @torch.no_grad()
    def load_rows(self, table: int, rows: Tensor) -> None:
        """Takes the first columns, and a first-order one, of a table's rows, float [num_embeddings, D]."""
        spec, shape = self.spec.tables[table], (self.spec.tables[table].num_embeddings, self.spec.embedding_dim)
        if tuple(rows.shape) != shape:
            raise UserError(f"table {spec.name!r}: its rows have shape {shape}, got {tuple(rows.shape)}")
        part: Any = next(part for part in self._parts() if table in part.tables)
        part.load_rows(part.tables.index(table), rows)

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def checked(cls, spec: GroupSpec, config: FieldDimConfig) -> FieldDimConfig:
        if not config.sized:
            return config
        return config.model_copy(update={"widths": named_widths(spec, config), "default_width": None})

    @classmethod
    def smallest(cls, spec: GroupSpec, config: FieldDimConfig, stats: Stats | None) -> FieldDimConfig:
        return config.model_copy(update={"widths": {t.name: 1 for t in spec.tables}})

    @classmethod
    def size(cls, spec: GroupSpec, config: FieldDimConfig, budget: int, stats: Stats | None) -> FieldDimConfig:
        widths = widths_within(spec, budget // 4)
        return config.model_copy(update={"widths": {t.name: w for t, w in zip(spec.tables, widths)}})


class PaddedPart(Part):
    """Tables of one width.

    Args:
        tables: which tables of the group, rising.
        width: columns of a vector; at 0 no row is stored.
        spec: the group.
        device: where the rows are made.
    """

    def __init__(self, tables: Sequence[int], width: int, spec: GroupSpec, device: torch.device | str | None) -> None:
        chosen = [spec.tables[t] for t in tables]
        sizes = [t.num_embeddings for t in chosen]
        rows = sizes if width else [0] * len(sizes)
        init = [narrow_init(t, n, width, spec.vector_dim) for t, n in zip(chosen, rows)]
        table = EmbeddingTable(sum(rows), spec.columns(width), init, device)
        form = "full" if width == spec.vector_dim else "padded" if width else "left out"
        super().__init__(tables, OwnRows(sizes), table, form=form, rows=rows)
        self.width, self.dim, self.vector_dim = width, spec.embedding_dim, spec.vector_dim

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        if not self.width:
            return self.table.weight.new_zeros(ids.shape[0], self.dim)
        return widen(super().forward(ids, counts), self.width, self.vector_dim)

    def load_rows(self, table: int, rows: Tensor) -> None:
        """``rows`` float [n, D] of one of the part's tables."""
        if self.width:
            assert self.rows is not None
            self.table.weight.split(list(self.rows))[table].copy_(narrow(rows, self.width, self.vector_dim))


def named_widths(spec: GroupSpec, config: FieldDimConfig) -> dict[str, int]:
    """The width of every table, in their order. Raises UserError on an unknown table, or a width above D."""
    most, names = spec.vector_dim, [t.name for t in spec.tables]
    given, rest = config.widths or {}, most if config.default_width is None else config.default_width
    for name, width in given.items():
        if name not in names:
            raise SettingError(f"options.widths.{name}", f"no such table; allowed: {', '.join(names)}")
        if width > most:
            raise SettingError(f"options.widths.{name}", f"{width} is too wide; allowed: 0 to {most}")
    if rest > most:
        raise SettingError("options.default_width", f"{rest} is too wide; allowed: 0 to {most}")
    return {name: given.get(name, rest) for name in names}


def widths_within(spec: GroupSpec, floats: int) -> list[int]:
    """The largest uniform width, then tables a power of two wider, the smallest first, as long as there is room."""
    sizes, most = [t.num_embeddings for t in spec.tables], spec.vector_dim
    uniform = max(1, min(most, floats // sum(sizes) - (spec.embedding_dim - most)))
    widths, left = [uniform] * len(sizes), floats - sum(sizes) * spec.columns(uniform)
    smallest_first = sorted(range(len(sizes)), key=sizes.__getitem__)
    grown = True
    while grown:
        grown = False
        for t in smallest_first:
            wider = min(1 << widths[t].bit_length(), most)  # the next power of two
            cost = sizes[t] * (wider - widths[t])
            if 0 < cost <= left:
                widths[t], left, grown = wider, left - cost, True
    return widths
