"""Multi-hash: every id is the sum of several hashed rows, so that few ids share all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.backends.hash import most_rows, split_own
from recsys_emb.embeddings.base import GroupSpec, Stats, register
from recsys_emb.embeddings.budget import water_fill
from recsys_emb.embeddings.composed import (
    ComposedBackend,
    HashedRows,
    OwnRows,
    Part,
    SizedConfig,
    add,
    check_range,
    own_parts,
    starts_of,
)
from recsys_emb.embeddings.hashing import seeds
from recsys_emb.embeddings.tables import block_table
from recsys_emb.errors import SettingError


class MultiHashConfig(SizedConfig):
    """Options of ``multi_hash``."""

    probes: int = Field(
        2, ge=1, le=16, description="k, rows that are summed for an id; more: fewer equal vectors, slower, no bytes"
    )
    importance: bool = Field(
        False,
        description="k weights learned for every id, as in the paper: 4 k bytes per id of a hashed table, which can be "
        "more than the rows",
    )
    balance: float = Field(0.5, ge=0, le=1, description="a table's rows grow with ids^balance until it is full")
    seed: int = Field(0, description="of the hash functions; no effect on size")
    rows: tuple[int, ...] | None = Field(None, description="M, rows of each table; absent: by the budget")

    @property
    def sized(self) -> bool:
        return self.rows is not None


@register("multi_hash")
class MultiHashBackend(ComposedBackend[MultiHashConfig]):
    """Hash embeddings (Svenstrup et al., "Hash Embeddings for Efficient Word Representations", NeurIPS 2017, eq. 1).

    vector(id) = sum over k probes of p_k(id) * E[h_k(id)], E of M x D, p = 1 unless ``importance``: 4 M D bytes, and
    4 k N with importance weights. A table whose share of the budget holds all its ids is full.
    """

    summary = "sum of several hashed rows, optionally weighted per id"

    Config = MultiHashConfig
    needs_id_list = False

    def __init__(self, spec: GroupSpec, config: MultiHashConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.rows is not None
        own, hashed = split_own(spec, config.rows)
        self.parts = own_parts(own, spec, device)
        if hashed:
            rows = [config.rows[t] for t in hashed]
            # A sum of k independent rows has k times the variance of one.
            stds = [spec.tables[t].init_std / config.probes**0.5 for t in hashed]
            table = block_table(rows, spec.embedding_dim, stds, device)
            probe_seeds = seeds(len(rows) * config.probes, config.seed).view(len(rows), config.probes)
            transform = HashedRows(torch.tensor(rows), starts_of(rows), probe_seeds)
            ids = [spec.tables[t].num_embeddings for t in hashed]
            combine = Importance(ids, config.probes, device) if config.importance else add
            floats = [n * config.probes * config.importance for n in ids]
            self.parts["hashed"] = Part(hashed, transform, table, combine, f"{config.probes} hashes", rows, floats)

    @classmethod
    def checked(cls, spec: GroupSpec, config: MultiHashConfig) -> MultiHashConfig:
        if spec.hashed and config.importance:
            raise SettingError("options.importance", "needs the list of ids, which 63-bit hashes have not")
        check_range("rows", spec, config.rows, most_rows(spec))
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: MultiHashConfig, stats: Stats | None) -> MultiHashConfig:
        dim = spec.embedding_dim
        rows = [1 if _least(n, dim, config) < n * dim else n for n in most_rows(spec)]
        return config.model_copy(update={"rows": tuple(rows)})

    @classmethod
    def size(cls, spec: GroupSpec, config: MultiHashConfig, budget: int, stats: Stats | None) -> MultiHashConfig:
        dim, sizes = spec.embedding_dim, most_rows(spec)
        least = [_least(n, dim, config) for n in sizes]
        shares = water_fill([n * dim for n in sizes], least, budget // 4, config.balance)
        rows = []
        for n, share in zip(sizes, shares):
            extra = n * config.probes if config.importance and share < n * dim else 0
            rows.append((share - extra) // dim)
        return config.model_copy(update={"rows": tuple(rows)})


def _least(ids: int, dim: int, config: MultiHashConfig) -> int:
    """Floats of one row for all ids, or of the full table where importance weights would cost more."""
    return min(ids * dim, dim + ids * config.probes * config.importance)


class Importance(nn.Module):
    """Sum of the probes' rows, each times a weight that the id learns for it.

    Args:
        ids: ids of each table.
        probes: k.
    """

    def __init__(self, ids: list[int], probes: int, device: torch.device | str | None) -> None:
        super().__init__()
        self.table = block_table([sum(ids)], probes, [0.0], device, [nn.init.ones_])
        self.transform = OwnRows(ids)

    def forward(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        weights = self.table(self.transform(ids, counts))
        return (rows * weights[..., None]).sum(1)  # a product would run in bf16 under autocast
