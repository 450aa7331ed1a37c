"""The hashing trick: ids share rows that a hash function picks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field

from recsys_emb.embeddings.base import GroupSpec, Stats, register
from recsys_emb.embeddings.budget import water_fill
from recsys_emb.embeddings.composed import (
    ComposedBackend,
    HashedRows,
    Part,
    SizedConfig,
    check_range,
    own_parts,
    starts_of,
)
from recsys_emb.embeddings.hashing import MAX_ROWS, seeds
from recsys_emb.embeddings.tables import block_table


class HashConfig(SizedConfig):
    """Options of ``hash``."""

    balance: float = Field(
        0.5,
        ge=0,
        le=1,
        description="a table's rows grow with ids^balance until it is full; 1: the same ratio for every table, which "
        "keeps fewer small fields free of collisions; 0: the same number of rows",
    )
    seed: int = Field(0, description="of the hash functions; no effect on size")
    rows: tuple[int, ...] | None = Field(
        None, description="rows of each table, 4 D bytes each; more rows, fewer collisions; absent: by the budget"
    )

    @property
    def sized(self) -> bool:
        return self.rows is not None


@register("hash")
class HashBackend(ComposedBackend[HashConfig]):
    """Feature hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009).

    A table of N ids keeps M rows, vector(id) = E[h(id)] with h a seeded mixing hash: 4 M D bytes. A table that has
    room for all its ids is full, without hashing. Without a budget: a tenth of the full tables.
    """

    summary = "ids share hashed rows"

    Config = HashConfig
    needs_id_list = False

    def __init__(self, spec: GroupSpec, config: HashConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.rows is not None
        own, hashed = split_own(spec, config.rows)
        self.parts = own_parts(own, spec, device)
        if hashed:
            rows = [config.rows[t] for t in hashed]
            tables = [spec.tables[t] for t in hashed]
            stds, init_fns = [t.init_std for t in tables], [t.init_fn for t in tables]
            table = block_table(rows, spec.embedding_dim, stds, device, init_fns)
            transform = HashedRows(torch.tensor(rows), starts_of(rows), seeds(len(rows), config.seed)[:, None])
            self.parts["hashed"] = Part(hashed, transform, table, form="hashed", rows=rows)

    @classmethod
    def checked(cls, spec: GroupSpec, config: HashConfig) -> HashConfig:
        check_range("rows", spec, config.rows, most_rows(spec))
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: HashConfig, stats: Stats | None) -> HashConfig:
        return config.model_copy(update={"rows": (1,) * len(spec.tables)})

    @classmethod
    def size(cls, spec: GroupSpec, config: HashConfig, budget: int, stats: Stats | None) -> HashConfig:
        full = most_rows(spec)
        rows = water_fill(full, [1] * len(full), budget // (4 * spec.embedding_dim), config.balance)
        return config.model_copy(update={"rows": tuple(rows)})


def most_rows(spec: GroupSpec) -> list[int]:
    """Rows that each table has a use for: one per id, as far as the hash reaches."""
    return [min(t.num_embeddings, MAX_ROWS) for t in spec.tables]


def split_own(spec: GroupSpec, rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """Tables that have a row for every id, and those that have not."""
    own = [i for i, (t, r) in enumerate(zip(spec.tables, rows)) if r == t.num_embeddings]
    return own, [i for i in range(len(rows)) if i not in own]
