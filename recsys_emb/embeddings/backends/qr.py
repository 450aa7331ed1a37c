"""Quotient-remainder: every id has its own pair (or tuple) of rows from small tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import GroupSpec, Stats, register
from recsys_emb.embeddings.budget import water_fill
from recsys_emb.embeddings.composed import (
    Combiner,
    ComposedBackend,
    Concat,
    Part,
    SizedConfig,
    Transform,
    add,
    check_length,
    multiply,
    own_parts,
    size_error,
    starts_of,
)
from recsys_emb.embeddings.constants import Constants
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.hashing import MAX_ROWS, hash_ids, seeds
from recsys_emb.embeddings.tables import block_table
from recsys_emb.errors import SettingError

MAX_PARTITIONS = 8


class QRConfig(SizedConfig):
    """Options of ``qr``."""

    combine: Literal["mult", "add", "concat"] = Field(
        "mult", description="how an id's rows become its vector; concat stores rows of D / partitions columns"
    )
    partitions: int | None = Field(
        None,
        ge=2,
        le=MAX_PARTITIONS,
        description="rows per id; p partitions of N ids need about p N^(1/p) rows, and share more; absent: the fewest "
        "that fit the budget",
    )
    balance: float = Field(0.5, ge=0, le=1, description="a table's rows grow with ids^balance until it is full")
    modulus: int | None = Field(
        None,
        ge=2,
        le=MAX_ROWS,
        description="for 63-bit hashed ids: how many buckets they fall into first; more: fewer collisions, more bytes",
    )
    seed: int = Field(0, description="of the hash into those buckets; no effect on size")
    radices: tuple[tuple[int, ...], ...] | None = Field(
        None,
        description="rows of each partition of each table, their product at least its ids; (N,) keeps a table full",
    )

    @property
    def sized(self) -> bool:
        return self.radices is not None


@register("qr")
class QRBackend(ComposedBackend[QRConfig]):
    """Complementary partitions (Shi et al., "Compositional Embeddings Using Complementary Partitions", KDD 2020).

    Section 3.1, the generalised quotient-remainder trick: an id is written in mixed radix (m_0, m_1, ...), digit j
    picks a row of table j (m_j x D), and the rows are multiplied, added or concatenated. No two ids have the same
    digits. Bytes: 4 D sum(m_j); m_0 is made as large, and the rest as small and equal, as the budget allows. A table
    whose share of the budget holds all its ids is full. Without a budget: a quarter of the full tables, four
    collisions as in the paper.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "qr", budget=0.1).serving_bytes()
        58944
    """

    summary = "quotient-remainder: one row per digit of the id, combined"

    Config = QRConfig
    needs_id_list = False
    grows = True
    default_ratio = 0.25

    def __init__(self, spec: GroupSpec, config: QRConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.radices is not None
        split = [t for t, radices in enumerate(config.radices) if len(radices) > 1]
        own = [t for t in range(len(spec.tables)) if t not in split]
        self.parts = own_parts(own, spec, device)
        if split:
            radices = torch.tensor([config.radices[t] for t in split])
            rows = radices.sum(1).tolist()
            partitions = radices.shape[1]
            width = _width(spec.embedding_dim, partitions, config)
            combine: Combiner = {"mult": multiply, "add": add}.get(config.combine, Concat(spec.embedding_dim))
            stds = [_factor_std(spec.tables[t].init_std, partitions, config) for t in split]
            transform: Transform = MixedRadix(radices)
            if spec.hashed:
                transform = Bucketed(_ids(spec, config)[0], seeds(len(split), config.seed), transform)
            table = block_table(rows, width, stds, device)
            self.parts["split"] = Part(split, transform, table, combine, f"{partitions} partitions", rows)

    @classmethod
    def checked(cls, spec: GroupSpec, config: QRConfig) -> QRConfig:
        if config.modulus is not None and not spec.hashed:
            raise SettingError("options.modulus", "for 63-bit hashed ids only; these have a list, leave it out")
        if config.radices is None:
            return config
        check_length("radices", spec, config.radices)
        partitions = config.partitions or max(len(r) for r in config.radices)
        for table, ids, radices in zip(spec.tables, _ids(spec, config), config.radices):
            if radices == (ids,) and not spec.hashed:
                continue
            in_range = all(1 <= r <= max(2, ids) for r in radices)
            if not (2 <= len(radices) == partitions <= MAX_PARTITIONS and in_range and math.prod(radices) >= ids):
                full = "" if spec.hashed else f"[{ids}], or "
                count = min(max(2, partitions), MAX_PARTITIONS)
                allowed = f"{full}{count} numbers from 1 to {max(2, ids):,} whose product is at least {ids:,}"
                raise size_error("radices", table, list(radices), allowed)
        return config

    @classmethod
    def grown(cls, config: QRConfig, before: GroupSpec, after: GroupSpec) -> QRConfig:
        """Full tables stay full; of the others the last digit gets as many rows more as the new ids need."""
        assert config.radices is not None
        radices = []
        for own, ids in zip(config.radices, _ids(after, config)):
            *first, last = own
            radices.append((*first, max(last, -(-ids // math.prod(first)))))
        return config.model_copy(update={"radices": tuple(radices)})

    @classmethod
    def smallest(cls, spec: GroupSpec, config: QRConfig, stats: Stats | None) -> QRConfig:
        return cls.size(spec, config, 4 * min(sum(_least(spec, config, p)) for p in _choices(config)), stats)

    @classmethod
    def size(cls, spec: GroupSpec, config: QRConfig, budget: int, stats: Stats | None) -> QRConfig:
        dim, sizes, floats = spec.embedding_dim, _ids(spec, config), budget // 4
        partitions = next(p for p in _choices(config) if sum(_least(spec, config, p)) <= floats)
        width = _width(dim, partitions, config)
        shares = water_fill([n * dim for n in sizes], _least(spec, config, partitions), floats, config.balance)
        radices = [
            (n,) if s == n * dim and not spec.hashed else radices_for(n, partitions, s // width)
            for n, s in zip(sizes, shares)
        ]
        taken = [_floats(r, dim, width) for r in radices]
        left = floats - sum(taken)
        for t in sorted(range(len(sizes)), key=sizes.__getitem__):  # shares that no radices use up, small tables first
            room, ids = taken[t] + left, sizes[t]
            full = ids * dim <= room and not spec.hashed
            radices[t] = (ids,) if full else radices_for(ids, partitions, room // width)
            left = room - _floats(radices[t], dim, width)
        return config.model_copy(update={"radices": tuple(radices)})


def _choices(config: QRConfig) -> range:
    return (
        range(2, MAX_PARTITIONS + 1) if config.partitions is None else range(config.partitions, config.partitions + 1)
    )


def _ids(spec: GroupSpec, config: QRConfig) -> list[int]:
    """How many ids (or buckets of hashed ids) each table's digits must tell apart."""
    if not spec.hashed:
        return [t.num_embeddings for t in spec.tables]
    if config.modulus is None:
        raise SettingError("options.modulus", "missing; qr on 63-bit hashes needs it, e.g. 10000000")
    return [config.modulus] * len(spec.tables)


def _width(dim: int, partitions: int, config: QRConfig) -> int:
    return -(-dim // partitions) if config.combine == "concat" else dim


def _least(spec: GroupSpec, config: QRConfig, partitions: int) -> list[int]:
    """Floats that each table needs at least: its smallest partitions, or all its rows where those are fewer."""
    dim, width = spec.embedding_dim, _width(spec.embedding_dim, partitions, config)
    split = [width * sum(_smallest(n, partitions)) for n in _ids(spec, config)]
    return split if spec.hashed else [min(s, n * dim) for s, n in zip(split, _ids(spec, config))]


def _floats(radices: tuple[int, ...], dim: int, width: int) -> int:
    return sum(radices) * (width if len(radices) > 1 else dim)


def _factor_std(std: float, partitions: int, config: QRConfig) -> float:
    """The standard deviation of each of an id's rows, so that their product, sum or concatenation has ``std``."""
    return {"mult": std ** (1 / partitions), "add": std / partitions**0.5, "concat": std}[config.combine]


# -- mixed radix ------------------------------------------------------------------------------------------------------


def _radices(ids: int, partitions: int, base: int) -> tuple[int, ...]:
    """All digits but the first of one base, the first as large as that needs."""
    return (-(-ids // base ** (partitions - 1)), *[base] * (partitions - 1))


def _smallest(ids: int, partitions: int) -> tuple[int, ...]:
    """Radices of the least sum; it lies where all are about equal."""
    root = round(ids ** (1 / partitions))
    return min((_radices(ids, partitions, b) for b in range(max(2, root - 2), root + 4)), key=sum)


def radices_for(ids: int, partitions: int, rows: int) -> tuple[int, ...]:
    """Radices with a product of at least ``ids`` and a sum of at most ``rows``, the first as large as possible.

    ``rows`` must be at least the sum of the smallest radices.
    """
    smallest = _smallest(ids, partitions)
    low, high = 1, smallest[1]  # the sum falls as the base grows to `high`, where it is known to fit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if sum(_radices(ids, partitions, middle)) <= rows else (middle, high)
    return _radices(ids, partitions, high)


class MixedRadix(Constants):
    """Digits of an id, the least first, each a row of its partition.

    Args:
        radices: int64 [K, P].
        starts: int64 [K, P], where each partition's rows start; None: a table's partitions lie one after another.
    """

    def __init__(self, radices: Tensor, starts: Tensor | None = None) -> None:
        super().__init__()
        self.radices = radices
        self.starts = starts_of(radices.flatten().tolist()).view_as(radices) if starts is None else starts

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows, rest = [], ids
        *first, last = range(self.radices.shape[1])
        for j in first:  # integer division only: floats would merge ids above 2^24
            radix = per_id(self.radices[:, j], counts, ids)
            quotient = rest // radix
            rows.append(rest - quotient * radix + per_id(self.starts[:, j], counts, ids))
            rest = quotient
        rows.append(rest + per_id(self.starts[:, last], counts, ids))
        return torch.stack(rows, dim=1)


class Bucketed(Constants):
    """Hashes ids into buckets before another transform."""

    def __init__(self, buckets: int, seeds: Tensor, then: Transform) -> None:
        super().__init__()
        self.buckets, self.seeds, self.then = buckets, seeds, then

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return self.then(hash_ids(ids, self.buckets, per_id(self.seeds, counts, ids)), counts)
