"""Tables whose ids share hashed rows: what ``hash`` and ``multi_hash`` have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from pydantic import Field

from recsys_emb.embeddings.base import GroupSpec, Stats
from recsys_emb.embeddings.budget import water_fill
from recsys_emb.embeddings.composed import (
    Combiner,
    ComposedBackend,
    HashedRows,
    Part,
    SizedConfig,
    check_range,
    first,
    own_parts,
    starts_of,
)
from recsys_emb.embeddings.hashing import MAX_ROWS, seeds
from recsys_emb.embeddings.tables import block_table


class HashedConfig(SizedConfig):
    """Options of both."""

    balance: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a table's rows grow with ids^balance until it is full; 1: the same ratio for every table, which "
        "keeps fewer small fields free of collisions; 0: the same number of rows",
    )
    seed: int = Field(0, description="of the hash functions; no effect on size")
    rows: tuple[int, ...] | None = Field(
        None, description="M, rows of each table, 4 D bytes each; more: fewer collisions; absent: by the budget"
    )

    @property
    def sized(self) -> bool:
        return self.rows is not None

    @property
    def rows_per_id(self) -> int:
        """How many rows make a vector."""
        return 1

    @property
    def floats_per_id(self) -> int:
        """What each id of a hashed table stores for itself."""
        return 0


H = TypeVar("H", bound=HashedConfig)


class HashedBackend(ComposedBackend[H]):
    """A table of N ids keeps M rows of D floats, and ``floats_per_id`` for each id; where that holds all its ids it is
    full, without hashing."""

    needs_id_list = False
    grows = True

    def __init__(self, spec: GroupSpec, config: H, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.rows is not None
        own = [t for t, rows in enumerate(config.rows) if rows == spec.tables[t].num_embeddings]
        hashed = [t for t in range(len(spec.tables)) if t not in own]
        self.parts = own_parts(own, spec, device)
        if hashed:
            self.parts["hashed"] = self.hashed_part(hashed, device)

    def hashed_part(self, hashed: Sequence[int], device: torch.device | str | None) -> Part:
        """The tables that have fewer rows than ids."""
        assert self.config.rows is not None
        rows, tables = [self.config.rows[t] for t in hashed], [self.spec.tables[t] for t in hashed]
        probes = self.config.rows_per_id
        # A sum of k independent rows has k times the variance of one.
        stds = [t.init_std / probes**0.5 for t in tables]
        init_fns = [t.init_fn if probes == 1 else None for t in tables]
        table = block_table(rows, self.spec.embedding_dim, stds, device, init_fns)
        ids = [t.num_embeddings for t in tables]
        own_floats = [n * self.config.floats_per_id for n in ids]
        form = "hashed" if probes == 1 else f"{probes} hashes"
        return Part(
            hashed, hash_rows(rows, probes, self.config.seed), table, self.combiner(ids, device), form, rows, own_floats
        )

    def combiner(self, ids: Sequence[int], device: torch.device | str | None) -> Combiner:
        """What makes a vector of the rows of hashed tables with so many ids."""
        return first

    @classmethod
    def grown(cls, config: H, before: GroupSpec, after: GroupSpec) -> H:
        """Full tables stay full; the others share the rows that there are."""
        config = super().grown(config, before, after)
        assert config.rows is not None
        tables = zip(config.rows, before.tables, after.tables)
        rows = [new.num_embeddings if n == old.num_embeddings else n for n, old, new in tables]
        return config.model_copy(update={"rows": tuple(rows)})

    @classmethod
    def checked(cls, spec: GroupSpec, config: H) -> H:
        check_range("rows", spec, config.rows, most_rows(spec))
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: H, stats: Stats | None) -> H:
        dim = spec.embedding_dim
        rows = [1 if _least(n, dim, config) < n * dim else n for n in most_rows(spec)]
        return config.model_copy(update={"rows": tuple(rows)})

    @classmethod
    def size(cls, spec: GroupSpec, config: H, budget: int, stats: Stats | None) -> H:
        return config.model_copy(update={"rows": rows_within(budget, spec, config)})


def rows_within(budget: int, spec: GroupSpec, config: HashedConfig) -> tuple[int, ...]:
    """Rows of each table, and what its ids store for themselves, in at most ``budget`` bytes."""
    dim, most = spec.embedding_dim, most_rows(spec)
    least = [_least(n, dim, config) for n in most]
    shares = water_fill([n * dim for n in most], least, budget // 4, config.balance)
    own = [0 if share == n * dim else n * config.floats_per_id for n, share in zip(most, shares)]
    rows = [(share - floats) // dim for share, floats in zip(shares, own)]
    left = budget // 4 - sum(own) - sum(rows) * dim
    # Less than a row of each table is left; those that miss the least of one get it.
    for t in sorted(range(len(rows)), key=lambda t: (own[t] - shares[t]) % dim):
        if left >= dim and rows[t] + 1 < most[t]:
            rows[t], left = rows[t] + 1, left - dim
    return tuple(rows)


def hash_rows(rows: Sequence[int], probes: int, seed: int) -> HashedRows:
    """``probes`` hash functions for each table, into blocks of so many rows that lie one after another."""
    probe_seeds = seeds(len(rows) * probes, seed).view(len(rows), probes)
    return HashedRows(torch.tensor(rows), starts_of(rows), probe_seeds)


def most_rows(spec: GroupSpec) -> list[int]:
    """Rows that each table has a use for: one per id, as far as the hash reaches."""
    return [min(t.num_embeddings, MAX_ROWS) for t in spec.tables]


def _least(ids: int, dim: int, config: HashedConfig) -> int:
    """Floats of one row for all ids and their own, or of the full table where these would cost more."""
    return min(ids * dim, dim + ids * config.floats_per_id)
