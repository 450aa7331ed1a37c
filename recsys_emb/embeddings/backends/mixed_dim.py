"""Mixed dimensions: popular ids get wide rows, rare ones narrow rows and a projection."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import GroupSpec, Stats, falls_with_id, register
from recsys_emb.embeddings.composed import (
    ComposedBackend,
    OwnRows,
    Project,
    SizedConfig,
    check_length,
    parts_by_width,
    projected_floats,
    size_error,
    starts_of,
    unsort,
    useful_width,
)
from recsys_emb.embeddings.counts import per_id, tally
from recsys_emb.errors import SettingError


class MixedDimConfig(SizedConfig):
    """Options of ``mixed_dim``."""

    alpha: float | None = Field(
        None,
        ge=0,
        description="how fast widths fall with popularity; 0: all equal; higher: smaller; the paper tries up to "
        "0.6; absent: by the budget",
    )
    by: Literal["auto", "size", "popularity"] = Field(
        "auto",
        description="size: one width per table; popularity: blocks of ids by their counts in training, which spends "
        "the same bytes better; auto: popularity where counts are known and fall with the id",
    )
    blocks: int = Field(4, ge=1, le=16, description="blocks per table by popularity, of equal traffic")
    round_to_power_of_two: bool = Field(
        True,
        description="widths 1, 2, 4, ..., D; without: any width, which follows a budget closer but has more tables",
    )
    starts: tuple[tuple[int, ...], ...] | None = Field(None, description="first id of each block; absent: planned")
    widths: tuple[tuple[int, ...], ...] | None = Field(None, description="columns of each block; absent: planned")

    @property
    def sized(self) -> bool:
        return self.widths is not None


@register("mixed_dim")
class MixedDimBackend(ComposedBackend[MixedDimConfig]):
    """Mixed dimension embeddings (Ginart et al., "Mixed Dimension Embeddings with Application to Memory-Efficient
    Recommendation Systems", 2019, algorithm 2).

    A block of n ids with popularity p has d = D (p / p_max)^alpha columns and a d x D projection without bias:
    4 d (n + D) bytes, or 4 n D where that is no more. By field size a block is a table and p = 1 / n; by popularity p
    is the mean count of a block's ids. Blocks are ranges of ids, since an encoder numbers ids by falling count; id 0,
    out-of-vocabulary, belongs to the first block. The least is width 1 for all, about 1 / D of the full tables. Without
    a budget: a quarter.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "mixed_dim", budget=0.1).serving_bytes()
        40064
    """

    summary = "frequent ids get wide rows, rare ones narrow, projected to D"

    Config = MixedDimConfig
    grows = True
    default_ratio = 0.25

    def __init__(self, spec: GroupSpec, config: MixedDimConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.widths is not None
        starts = config.starts or tuple((0,) for _ in spec.tables)
        self.blocks = [
            (t, begin, end)
            for t, (begins, table) in enumerate(zip(starts, spec.tables))
            for begin, end in zip(begins, (*begins[1:], table.num_embeddings))
        ]
        widths = [w for table in config.widths for w in table]
        stds = [spec.tables[t].init_std for t, _, _ in self.blocks]
        sizes = [end - begin for _, begin, end in self.blocks]
        self.parts = parts_by_width(sizes, widths, stds, spec.embedding_dim, device)
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])
        self.block_starts = starts_of(sizes)  # among the ids of all tables, of which blocks are consecutive ranges

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        if len(self.blocks) == len(self.spec.tables):
            return super().lookup(ids, counts)
        places = self.rows_of(ids, counts)
        block = torch.bucketize(places, self.block_starts[1:].to(ids.device), right=True)
        if self.device.type == "meta" or torch.compiler.is_compiling():
            return self._by_every_part(places, block)
        small = torch.uint8 if len(self.blocks) < 256 else torch.int32  # sorts faster
        order = block.to(small).argsort(stable=True)
        block_counts = tally(block, len(self.blocks))
        inside = places.index_select(0, order) - per_id(self.block_starts, block_counts, ids)
        return unsort(super().lookup(inside, block_counts), order)

    def _by_every_part(self, places: Tensor, block: Tensor) -> Tensor:
        """The vectors of places [n] in these blocks [n], float [n, D], by the same steps whatever the ids are.

        Every part looks all of them up, those of other parts as its row 0, and the part of an id's block is taken.
        """
        out = places.new_zeros([places.shape[0], self.spec.embedding_dim], dtype=torch.float32)
        for part in self._parts():
            rows = [end - begin for _, begin, end in (self.blocks[b] for b in part.tables)]
            shift = torch.zeros(len(self.blocks), dtype=torch.int64)  # from a place to its row
            shift[part.tables] = starts_of(rows) - self.block_starts[part.tables]
            number = torch.full([len(self.blocks)], -1)
            number[part.tables] = torch.arange(len(part.tables))
            number = number.to(block.device).index_select(0, block)
            mine = number >= 0
            row = torch.where(mine, places + shift.to(block.device).index_select(0, block), 0)
            vectors = part.table(row)
            if isinstance(part.combine, Project):
                weight = part.combine.weight.index_select(0, number.clamp(min=0))  # [n, W, D]
                vectors = (vectors[:, None, :] @ weight).squeeze(1)
            out = torch.where(mine[:, None], vectors, out)
        return out

    def _named(self, table: int) -> tuple[int, str]:
        t, begin, end = self.blocks[table]
        spec = self.spec.tables[t]
        whole = end - begin == spec.num_embeddings
        return end - begin, spec.name if whole else f"{spec.name}[{begin}:{end}]"

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def checked(cls, spec: GroupSpec, config: MixedDimConfig) -> MixedDimConfig:
        if config.widths is None:
            if config.starts is not None:
                raise SettingError("options.starts", "missing widths; give the columns of each block, too")
            return config
        check_length("widths", spec, config.widths)
        starts = ((0,),) * len(spec.tables) if config.starts is None else config.starts
        check_length("starts", spec, starts)
        for table, begins, widths in zip(spec.tables, starts, config.widths):
            rising = all(a < b for a, b in pairwise((*begins, table.num_embeddings)))
            if begins[:1] != (0,) or not rising:
                raise size_error("starts", table, list(begins), f"0, then rising, below {table.num_embeddings:,}")
            if len(widths) != len(begins) or not all(1 <= w <= spec.embedding_dim for w in widths):
                raise size_error(
                    "widths", table, list(widths), f"one of 1 to {spec.embedding_dim} for each of {len(begins)}"
                )
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: MixedDimConfig, stats: Stats | None) -> MixedDimConfig:
        blocks = find_blocks(spec, config, stats)
        if config.alpha is not None:
            return _with_widths(spec, config, blocks, widths_for(blocks, spec, config, config.alpha))
        return _with_widths(spec, config, blocks, widths_for(blocks, spec, config, 0, most=1))

    @classmethod
    def size(cls, spec: GroupSpec, config: MixedDimConfig, budget: int, stats: Stats | None) -> MixedDimConfig:
        if config.alpha is not None:
            return cls.smallest(spec, config, stats)
        blocks = find_blocks(spec, config, stats)
        return _with_widths(spec, config, blocks, solve(blocks, spec, config, budget // 4))


@dataclass(frozen=True)
class WidthBlock:
    """``ids`` ids of one table from ``begin`` on; ``popularity`` is relative to other blocks."""

    table: int
    begin: int
    ids: int
    popularity: float


def _with_widths(
    spec: GroupSpec, config: MixedDimConfig, blocks: list[WidthBlock], widths: list[int]
) -> MixedDimConfig:
    tables = range(len(spec.tables))
    starts = tuple(tuple(b.begin for b in blocks if b.table == t) for t in tables)
    of_table = tuple(tuple(w for b, w in zip(blocks, widths) if b.table == t) for t in tables)
    return config.model_copy(update={"starts": starts, "widths": of_table})


def find_blocks(spec: GroupSpec, config: MixedDimConfig, stats: Stats | None) -> list[WidthBlock]:
    """The tables, or ranges of their ids with about equal counts in sum."""
    unknown = [t.name for t in spec.tables if stats is None or t.name not in stats]
    general = [] if unknown or stats is None else [t.name for t in spec.tables if not falls_with_id(stats[t.name])]
    if config.by == "popularity" and (unknown or general):
        reason = f"{unknown[0]!r} has no counts" if unknown else f"the counts of {general[0]!r} do not fall with the id"
        raise SettingError("options.by", f"popularity is impossible, {reason}; use size")
    if stats is None or config.by == "size" or unknown or general:
        return [WidthBlock(i, 0, t.num_embeddings, 1 / t.num_embeddings) for i, t in enumerate(spec.tables)]
    blocks = []
    for i, table in enumerate(spec.tables):
        traffic = np.cumsum(stats[table.name], dtype=np.float64)
        cuts = np.searchsorted(traffic, traffic[-1] * np.arange(1, config.blocks) / config.blocks) + 1
        begins = sorted({0, *cuts.tolist()} - {table.num_embeddings})
        for begin, end in zip(begins, [*begins[1:], table.num_embeddings]):
            count = traffic[end - 1] - (traffic[begin - 1] if begin else 0)
            # Rows are looked up in serving too, so a block that training never saw still counts a little.
            blocks.append(WidthBlock(i, begin, end - begin, max(float(count), 1.0) / (end - begin)))
    return blocks


def widths_for(
    blocks: list[WidthBlock], spec: GroupSpec, config: MixedDimConfig, alpha: float, most: int | None = None
) -> list[int]:
    """Columns of each block: ``most`` (D) for the most popular, falling with popularity^alpha; at least 1."""
    dim = spec.embedding_dim
    top = max(b.popularity for b in blocks)
    round_ = _power_of_two if config.round_to_power_of_two else round
    ideal = [(most or dim) * (b.popularity / top) ** alpha for b in blocks]
    return [useful_width(b.ids, max(1, min(round_(d), dim)) if d < dim else dim, dim) for b, d in zip(blocks, ideal)]


def _power_of_two(x: float) -> int:
    return int(2 ** round(math.log2(max(x, 1))))


def total_floats(blocks: list[WidthBlock], widths: list[int], spec: GroupSpec) -> int:
    return sum(projected_floats(b.ids, w, spec.embedding_dim) for b, w in zip(blocks, widths))


def solve(blocks: list[WidthBlock], spec: GroupSpec, config: MixedDimConfig, floats: int) -> list[int]:
    """Widths of the smallest alpha that fits, then one step wider from the most popular block on, as there is room."""

    def widths(alpha: float, most: int) -> list[int]:
        return widths_for(blocks, spec, config, alpha, most)

    def fits(alpha: float, most: int) -> bool:
        return total_floats(blocks, widths(alpha, most), spec) <= floats

    # However large alpha is, the most popular block keeps D columns: where that is too much, all start lower.
    low, high = 0.0, 1e6
    most = next((m for m in range(spec.embedding_dim, 1, -1) if fits(high, m)), 1)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle, most) else (middle, high)
    found = widths(high, most)
    return _spend_rest(blocks, found, spec, config, floats - total_floats(blocks, found, spec))


def _spend_rest(
    blocks: list[WidthBlock], widths: list[int], spec: GroupSpec, config: MixedDimConfig, left: int
) -> list[int]:
    dim = spec.embedding_dim
    wider: Callable[[int], int] = (lambda w: 2 * w) if config.round_to_power_of_two else (lambda w: w + 1)
    widths = list(widths)
    for i in sorted(range(len(blocks)), key=lambda i: -blocks[i].popularity):
        width = useful_width(blocks[i].ids, min(wider(widths[i]), dim), dim)
        cost = projected_floats(blocks[i].ids, width, dim) - projected_floats(blocks[i].ids, widths[i], dim)
        if cost <= left:
            widths[i], left = width, left - cost
    return widths
