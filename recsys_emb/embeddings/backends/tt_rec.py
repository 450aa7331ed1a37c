"""Tensor-train: a table is the product of three small cores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.backends.qr import MixedRadix
from recsys_emb.embeddings.base import FieldReport, GroupSpec, Stats, register
from recsys_emb.embeddings.composed import (
    ComposedBackend,
    OwnRows,
    Part,
    SizedConfig,
    check_length,
    own_parts,
    starts_of,
)
from recsys_emb.embeddings.distinct import distinct
from recsys_emb.embeddings.tables import block_table


class TTRecConfig(SizedConfig):
    """Options of ``tt_rec``."""

    ranks: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None,
        description="R of each table, about R^2 D^(1/3) N^(1/3) floats; more: closer to a free table, slower; 0 keeps "
        "a table full; absent: one rank for all by the budget",
    )

    @property
    def sized(self) -> bool:
        return self.ranks is not None


@register("tt_rec")
class TTRecBackend(ComposedBackend[TTRecConfig]):
    """TT-Rec (Yin, Acun, Liu, Wu, "TT-Rec: Tensor Train Compression for Deep Learning Recommendation Models", MLSys
    2021, section 3, eq. 2).

    Ids are numbers of three digits in mixed radix (n1, n2, n3), columns in (d1, d2, d3), all as equal as they can be.
    Element (i, j) is G1[i1, j1] G2[i2, j2] G3[i3, j3], the product of a 1 x R, an R x R and an R x 1 matrix:
    4 R (n1 d1 + n2 R d2 + n3 d3) bytes. Elements start with the variance of a full table's, the paper's goal of
    section 3.3, from uniform cores. Each different id of a batch is multiplied out once.

    All tables get the largest rank that the budget allows; what is left makes the smallest ones full, then gives one
    more rank, and a table whose cores would not be smaller is full anyway. Without a budget: a tenth of the full
    tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "tt_rec", budget=0.1).serving_bytes()
        59296
    """

    summary = "the table as a product of three tensor-train cores"

    Config = TTRecConfig

    def __init__(self, spec: GroupSpec, config: TTRecConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.ranks is not None
        of_rank = {r: [t for t, rank in enumerate(config.ranks) if rank == r] for r in sorted(set(config.ranks))}
        self.parts = own_parts(of_rank.pop(0, []), spec, device)
        for rank, tables in of_rank.items():
            self.parts[f"rank_{rank}"] = Cores(tables, rank, spec, device)

    @classmethod
    def checked(cls, spec: GroupSpec, config: TTRecConfig) -> TTRecConfig:
        if config.ranks is not None:
            check_length("ranks", spec, config.ranks)
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: TTRecConfig, stats: Stats | None) -> TTRecConfig:
        return config.model_copy(update={"ranks": tuple(_useful(t.num_embeddings, 1, spec) for t in spec.tables)})

    @classmethod
    def size(cls, spec: GroupSpec, config: TTRecConfig, budget: int, stats: Stats | None) -> TTRecConfig:
        sizes, floats = [t.num_embeddings for t in spec.tables], budget // 4
        ranks = [_useful(n, 1, spec) for n in sizes]
        while any(ranks):
            more = [_useful(n, max(ranks) + 1, spec) for n in sizes]
            if sum(_floats(n, r, spec) for n, r in zip(sizes, more)) > floats:
                break
            ranks = more
        left, rank = floats - sum(_floats(n, r, spec) for n, r in zip(sizes, ranks)), max(ranks)
        for better in (0, rank + 1):
            for t in sorted(range(len(sizes)), key=sizes.__getitem__):
                cost = _floats(sizes[t], better, spec) - _floats(sizes[t], ranks[t], spec)
                if ranks[t] and cost <= left:
                    ranks[t], left = better, left - cost
        return config.model_copy(update={"ranks": tuple(ranks)})


class Cores(Part):
    """Tables of one rank: the three cores of all of them, each core a table of its own.

    Args:
        tables: which tables of the group, rising.
        rank: R.
        spec: the group.
        device: where the cores are made.
    """

    def __init__(self, tables: Sequence[int], rank: int, spec: GroupSpec, device: torch.device | str | None) -> None:
        sizes = [spec.tables[t].num_embeddings for t in tables]
        radices = torch.tensor([equal_radices(n) for n in sizes])  # [K, 3]
        self.columns = equal_radices(spec.embedding_dim)
        # R^2 products of three independent elements are summed.
        stds = [(spec.tables[t].init_std / rank) ** (1 / 3) for t in tables]
        widths = _core_widths(self.columns, rank)
        cores = [block_table(n, width, stds, device) for n, width in zip(radices.T.tolist(), widths)]
        starts = torch.stack([starts_of(n) for n in radices.T.tolist()], dim=1)
        super().__init__(tables, MixedRadix(radices, starts), cores[0], form=f"rank {rank}")
        self.middle, self.last = cores[1:]
        self.own, self.rank, self.dim = OwnRows(sizes), rank, spec.embedding_dim
        self.floats = [sum(n * w for n, w in zip(row, widths)) for row in radices.tolist()]

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        places, numbers = distinct(self.own(ids, counts))
        digits = self.transform(ids, counts).index_select(0, places)  # [m, 3]
        (d1, d2, d3), rank = self.columns, self.rank
        a = self.table(digits[:, 0]).unflatten(1, (d1, rank))
        b = self.middle(digits[:, 1]).unflatten(1, (rank, d2 * rank))
        c = self.last(digits[:, 2]).unflatten(1, (rank, d3))
        ab = _matmul(a, b).flatten(1).unflatten(1, (d1 * d2, rank))
        return _matmul(ab, c).flatten(1)[:, : self.dim].index_select(0, numbers)

    def report(self, ids: Sequence[int], names: Sequence[str]) -> list[FieldReport]:
        return [FieldReport(name, n, 0, self.dim, 4 * f, self.form) for name, n, f in zip(names, ids, self.floats)]


@torch.fx.wrap
def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """Batched products, in fp32 whatever the dense part uses."""
    if torch.jit.is_scripting():
        return torch.bmm(a, b)
    if a.is_meta or torch.compiler.is_exporting():
        return torch.bmm(a, b)
    with torch.autocast(a.device.type, enabled=False):
        return torch.bmm(a, b)


def equal_radices(n: int) -> tuple[int, int, int]:
    """Three radices of the least sum, then product, whose product is at least ``n``."""
    root = round(n ** (1 / 3))
    near = range(max(1, root - 1), root + 3)
    return min(((-(-n // (a * b)), a, b) for a in near for b in near), key=lambda r: (sum(r), math.prod(r)))


def _core_widths(columns: tuple[int, int, int], rank: int) -> tuple[int, int, int]:
    """Floats of a row of each core."""
    d1, d2, d3 = columns
    return d1 * rank, rank * d2 * rank, rank * d3


def _floats(ids: int, rank: int, spec: GroupSpec) -> int:
    """Floats of a table at a rank, 0 for the full table."""
    if not rank:
        return ids * spec.embedding_dim
    widths = _core_widths(equal_radices(spec.embedding_dim), rank)
    return sum(n * width for n, width in zip(equal_radices(ids), widths))


def _useful(ids: int, rank: int, spec: GroupSpec) -> int:
    """``rank``, or 0 where the full table takes no more."""
    return rank if _floats(ids, rank, spec) < _floats(ids, 0, spec) else 0
