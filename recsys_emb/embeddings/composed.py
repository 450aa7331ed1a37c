"""Backends as compositions: id transform -> table -> combiner.

The tables of a group fall into *parts*. A part turns the ids of its tables into row numbers of one physical table,
gathers them once, and combines what it gathered into D columns. n ids, K tables of a part, P rows per id (probes,
partitions), W columns of a row.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from recsys_emb.embeddings.base import (
    BackendConfig,
    C,
    EmbeddingBackend,
    FieldReport,
    GroupSpec,
    Stats,
    TableSpec,
)
from recsys_emb.embeddings.constants import Constants
from recsys_emb.embeddings.counts import all_equal, per_id, split_ids
from recsys_emb.embeddings.hashing import hash_ids
from recsys_emb.embeddings.tables import EmbeddingTable, block_table, fill_uniform
from recsys_emb.errors import SettingError

Transform = Callable[[Tensor, Sequence[int]], Tensor]
"""ids int64 [n], table-major, and the K tables' counts -> row numbers int64 [n] or [n, P]."""

Combiner = Callable[[Tensor, Tensor, Sequence[int]], Tensor]
"""gathered rows [n, W] or [n, P, W], ids [n], the K tables' counts -> float [n, D]."""


# -- id transforms ----------------------------------------------------------------------------------------------------


def starts_of(sizes: Sequence[int]) -> Tensor:
    """First row of each block when blocks of these sizes lie one after another, int64 [len(sizes)]."""
    ends = torch.tensor(sizes).cumsum(0)
    return ends - torch.tensor(sizes)


class OwnRows(Constants):
    """Every id has its own row; tables lie one after another."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.starts = starts_of(sizes)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return ids + per_id(self.starts, counts, ids)


class HashedRows(Constants):
    """P hash functions per table, each into the table's block of rows.

    Args:
        rows: int64 [K], how many rows the ids of each table share.
        starts: int64 [K], where each table's rows start.
        seeds: int64 [K, P].
    """

    def __init__(self, rows: Tensor, starts: Tensor, seeds: Tensor) -> None:
        super().__init__()
        self.rows, self.starts, self.seeds = rows, starts, seeds

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows, starts = per_id(self.rows, counts, ids), per_id(self.starts, counts, ids)
        probes = [hash_ids(ids, rows, per_id(seed, counts, ids)) + starts for seed in self.seeds.unbind(1)]
        return torch.stack(probes, dim=1)


# -- combiners --------------------------------------------------------------------------------------------------------


def first(rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
    """One row of D columns per id, as it is."""
    return rows.flatten(1)


def add(rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
    return rows.sum(1)


def multiply(rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
    return _product(rows)


@torch.fx.wrap
def _product(rows: Tensor) -> Tensor:
    out = rows.select(1, 0)
    for j in range(1, rows.shape[1]):
        out = out * rows.select(1, j)
    return out


class Concat:
    """P rows side by side; where P does not divide D the last columns are cut off."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return rows.flatten(1)[:, : self.dim]


class Project(nn.Module):
    """Each table's rows [n, W] times its own W x D matrix, without bias; keeps the scale of the rows."""

    def __init__(self, tables: int, width: int, dim: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tables, width, dim, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        fill_uniform(self.weight, self.weight.shape[1] ** -0.5)

    def forward(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return project(rows, self.weight, counts)


def project(rows: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows [n, W] times their table's matrix, [K, W, D] -> float32 [n, D]."""
    return _project(rows, weight, list(counts))


@torch.fx.wrap
def _project(rows: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    if torch.jit.is_scripting():
        return _times(rows, weight, counts)
    if rows.is_meta or torch.compiler.is_exporting():
        return _times(rows, weight, counts)
    with torch.autocast(rows.device.type, enabled=False):  # vectors are fp32 whatever the dense part uses
        return _times(rows, weight, counts)


def _times(rows: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
    if all_equal(counts):
        return torch.bmm(rows.view(len(counts), counts[0], rows.shape[1]), weight).flatten(0, 1)
    return torch.cat([part @ weight[i] for i, part in enumerate(rows.split(counts))])


class _Unsort(torch.autograd.Function):
    """Rows back into the order before ``order`` was applied; a permutation needs no accumulation in backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        places = torch.arange(len(order), device=order.device)
        return rows.index_select(0, torch.empty_like(order).scatter_(0, order, places))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grads[0].index_select(0, order), None


def unsort(rows: Tensor, order: Tensor) -> Tensor:
    """[n, D] rows of ``ids[order]`` -> rows of ``ids``."""
    return _unsort(rows, order)


@torch.fx.wrap
def _unsort(rows: Tensor, order: Tensor) -> Tensor:
    if torch.jit.is_scripting():
        return rows[order.argsort()]
    return cast(Tensor, _Unsort.apply(rows, order))


# -- parts and the backend --------------------------------------------------------------------------------------------


class Part(Constants):
    """Tables that are embedded alike.

    Args:
        tables: which tables of the group, rising.
        transform: ids -> row numbers.
        table: what is gathered.
        combine: gathered rows -> D columns.
        form: what the report calls it.
        rows: stored rows of each table; None when all tables share all rows.
        combiner_floats: what the combiner stores for each table.
    """

    def __init__(
        self,
        tables: Sequence[int],
        transform: Transform,
        table: EmbeddingTable,
        combine: Combiner = first,
        form: str = "full",
        rows: Sequence[int] | None = None,
        combiner_floats: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.tables = list(tables)
        self.transform, self.table, self.combine = transform, table, combine
        self.form, self.rows, self.combiner_floats = form, rows, combiner_floats or [0] * len(self.tables)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """ids int64 [n], table-major, and the K tables' counts -> float [n, D]."""
        return self.combine(self.table(self.transform(ids, counts)), ids, counts)

    def report(self, ids: Sequence[int], names: Sequence[str]) -> list[FieldReport]:
        """One line per table, and one for shared rows."""
        total, width = self.table.num_rows, self.table.weight.shape[1]
        if self.rows is None:
            lines = [FieldReport(name, n, 0, width, 0, self.form) for name, n in zip(names, ids)]
            return [*lines, FieldReport("(shared)", sum(ids), total, width, 4 * total * width, self.form)]
        return [
            FieldReport(name, n, rows, width, 4 * (rows * width + more), self.form)
            for name, n, rows, more in zip(names, ids, self.rows, self.combiner_floats)
        ]


class PartsBackend(EmbeddingBackend[C]):
    """A backend made of parts, which a subclass builds in ``__init__``."""

    parts: nn.ModuleDict

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        order = [t for part in self._parts() for t in part.tables]
        if order == sorted(order):
            return _cat(self.embed(ids, counts))
        pieces = split_ids(ids, counts)
        vectors = self.embed(torch.cat([pieces[t] for t in order]), [counts[t] for t in order])
        out = dict[int, Tensor]()
        for part, rows in zip(self._parts(), vectors):
            out.update(zip(part.tables, split_ids(rows, [counts[t] for t in part.tables])))
        return torch.cat([out[t] for t in range(len(out))])

    def embed(self, ids: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """Each part's vectors, for ids and counts that come part by part."""
        parts, rest = self._parts(), iter(counts)
        of_part = [list(islice(rest, len(part.tables))) for part in parts]
        pieces = split_ids(ids, [sum(c) for c in of_part])
        return [part(piece, c) for part, piece, c in zip(parts, pieces, of_part)]

    def _parts(self) -> list[Part]:
        return [cast(Part, part) for part in self.parts.values()]

    def describe(self) -> list[FieldReport]:
        lines: list[tuple[int, FieldReport]] = []
        for part in self._parts():
            ids, names = zip(*(self._named(t) for t in part.tables))
            report = part.report(ids, names)
            lines += zip([*part.tables, len(self.spec.tables)], report)
        return [line for _, line in sorted(lines, key=lambda x: x[0])]

    def _named(self, table: int) -> tuple[int, str]:
        """Ids and name, in the report, of one of the tables that parts refer to."""
        return self.spec.tables[table].num_embeddings, self.spec.tables[table].name


class SizedConfig(BackendConfig):
    """Options of a backend whose sizes are given, or left to the budget."""

    @property
    def sized(self) -> bool:
        """Whether the sizes are given."""
        raise NotImplementedError


S = TypeVar("S", bound=SizedConfig)


class ComposedBackend(PartsBackend[S]):
    """A backend made of parts, whose subclass says in ``smallest`` and ``size`` how bytes become sizes."""

    default_ratio: ClassVar[float] = 0.1
    """Ratio to the full tables when there is no budget."""

    @classmethod
    def checked(cls, spec: GroupSpec, config: S) -> S:
        """The config with what the options say of every table. Raises SettingError when they do not fit the tables."""
        return config

    @classmethod
    @abstractmethod
    def smallest(cls, spec: GroupSpec, config: S, stats: Stats | None) -> S:
        """The config with the least sizes that the method can do with."""

    @classmethod
    @abstractmethod
    def size(cls, spec: GroupSpec, config: S, budget: int, stats: Stats | None) -> S:
        """The config with sizes that take at most ``budget`` bytes, which is at least ``min_bytes(...)``."""

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: S, stats: Stats | None = None) -> int:
        config = cls.checked(spec, config)
        return cls(spec, config if config.sized else cls.smallest(spec, config, stats), "meta").serving_bytes()

    @classmethod
    def plan(cls, spec: GroupSpec, config: S, budget: int | None = None, stats: Stats | None = None) -> S:
        config = cls.checked(spec, config)
        if config.sized:
            return config
        return cls.size(spec, config, cls.default_bytes(spec, config, stats) if budget is None else budget, stats)

    @classmethod
    def default_bytes(cls, spec: GroupSpec, config: S, stats: Stats | None) -> int:
        """What takes the place of a budget that is not given."""
        return max(cls.min_bytes(spec, config, stats), int(cls.default_ratio * spec.full_bytes))


def size_error(option: str, table: TableSpec, given: object, allowed: str) -> SettingError:
    """The error of a size that does not fit its table."""
    return SettingError(f"options.{option}", f"{given} for table {table.name!r}; allowed: {allowed}")


def check_length(option: str, spec: GroupSpec, sizes: Sequence[object]) -> None:
    """Raises SettingError unless there is one size per table."""
    if len(sizes) != len(spec.tables):
        raise SettingError(f"options.{option}", f"one entry per table, {len(spec.tables)}, got {len(sizes)}")


def check_range(option: str, spec: GroupSpec, sizes: Sequence[int] | None, most: Sequence[int]) -> None:
    """Raises SettingError unless sizes, where they are given, are one per table, each from 1 to its ``most``."""
    if sizes is None:
        return
    check_length(option, spec, sizes)
    for table, size, limit in zip(spec.tables, sizes, most):
        if not 1 <= size <= limit:
            raise size_error(option, table, size, f"1 to {limit:,}")


def _cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def own_parts(tables: Sequence[int], spec: GroupSpec, device: torch.device | str | None) -> nn.ModuleDict:
    """One part of the tables stored in full, or none where there are no such tables."""
    if not tables:
        return nn.ModuleDict()
    chosen = [spec.tables[t] for t in tables]
    sizes = [t.num_embeddings for t in chosen]
    table = own_table(chosen, spec.embedding_dim, device)
    return nn.ModuleDict({"own": Part(tables, OwnRows(sizes), table, rows=sizes)})


def own_table(tables: Sequence[TableSpec], dim: int, device: torch.device | str | None) -> EmbeddingTable:
    """All rows of all tables, one table after another."""
    sizes = [t.num_embeddings for t in tables]
    return block_table(sizes, dim, [t.init_std for t in tables], device, [t.init_fn for t in tables])


def parts_by_width(
    sizes: Sequence[int], widths: Sequence[int], stds: Sequence[float], dim: int, device: torch.device | str | None
) -> nn.ModuleDict:
    """One part per width: own rows of that width, then, below D, a projection per table.

    Args:
        sizes: ids of each table (or block of ids).
        widths: columns of each.
        stds: standard deviation of each one's vectors at the start.
    """
    parts = {}
    for width in sorted(set(widths), reverse=True):
        mine = [i for i, w in enumerate(widths) if w == width]
        rows = [sizes[i] for i in mine]
        table = block_table(rows, width, [stds[i] for i in mine], device)
        if width == dim:
            part = Part(mine, OwnRows(rows), table, rows=rows)
        else:
            project = Project(len(mine), width, dim, device)
            part = Part(mine, OwnRows(rows), table, project, "projected", rows, [width * dim] * len(mine))
        parts[f"width_{width}"] = part
    return nn.ModuleDict(parts)


def projected_floats(ids: int, width: int, dim: int) -> int:
    """Floats of a table at a width: rows and projection, or the full table."""
    return ids * dim if width == dim else (ids + dim) * width


def useful_width(ids: int, width: int, dim: int) -> int:
    """``width``, or ``dim`` where the full table takes no more."""
    return width if projected_floats(ids, width, dim) < ids * dim else dim
