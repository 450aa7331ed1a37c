"""Frequent ids have rows of their own, the rest share hashed rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, cast

import numpy as np
import torch
from pydantic import Field

from recsys_emb.embeddings.backends._hashed import most_rows
from recsys_emb.embeddings.backends._own_and_hashed import OwnAndHashed, OwnRowsBackend, OwnRowsConfig, most_frequent
from recsys_emb.embeddings.base import GroupSpec, Stats, TableSpec, falls_with_id, register
from recsys_emb.embeddings.composed import check_length, size_error
from recsys_emb.errors import SettingError


class AdaptEmbConfig(OwnRowsConfig):
    """Options of ``adapt_emb``."""

    own: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, description="ids of each table that own a row, beside its hashed rows; absent: by counts and budget"
    )
    indexed: bool = Field(False, description="an index says which ids these are; without, each table's first ids")

    @property
    def sized(self) -> bool:
        return self.rows is not None and self.own is not None


@register("adapt_emb")
class AdaptEmbBackend(OwnRowsBackend[AdaptEmbConfig]):
    """Adaptive embedding ("Adapt" in Zhang et al., "Experimental Analysis of Large-scale Learnable Vector Storage
    Compression", VLDB 2024, section 3): the ids with the highest counts, of all tables together, own rows, the others
    share M hashed ones.

    4 D (own + M) bytes a table. Where counts fall with the ids these are a table's first ids, which takes no index;
    otherwise an index for all tables takes at most 3/16 byte an id (:class:`RowIndex`). Tables with room for all ids
    are full; without counts no id owns a row (as in ``hash``). Without a budget: a tenth of the full tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "adapt_emb", budget=0.1).serving_bytes()
        64000
    """

    summary = "frequent ids own rows, the rest share hashed ones"

    Config = AdaptEmbConfig

    def hashed_part(self, hashed: Sequence[int], device: torch.device | str | None) -> OwnAndHashed:
        assert self.config.rows is not None
        assert self.config.own is not None
        own, rows = [self.config.own[t] for t in hashed], [self.config.rows[t] for t in hashed]
        return OwnAndHashed(hashed, own, rows, self.spec, self.config.seed, self.config.indexed, device)

    @property
    def shared(self) -> OwnAndHashed | None:
        """The part of the tables with fewer rows than ids."""
        return cast(OwnAndHashed, self.parts["hashed"]) if "hashed" in self.parts else None

    def see_counts(self, stats: Stats) -> None:
        part = self.shared
        if part is not None and part.index is not None:
            counts = [_counts(self.spec.tables[t], stats) for t in part.tables]
            part.index.fill(torch.from_numpy(most_frequent(counts, part.index.rows)))

    @classmethod
    def checked(cls, spec: GroupSpec, config: AdaptEmbConfig) -> AdaptEmbConfig:
        config = super().checked(spec, config)
        if (config.own is None) != (config.rows is None):
            missing = "own" if config.own is None else "rows"
            raise SettingError(f"options.{missing}", "missing; own and rows go together")
        if config.own is not None and config.rows is not None:
            check_length("own", spec, config.own)
            for table, own, rows in zip(spec.tables, config.own, config.rows):
                if own and own + rows >= table.num_embeddings:
                    raise size_error("own", table, own, f"0, or with its {rows:,} rows below {table.num_embeddings:,}")
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: AdaptEmbConfig, stats: Stats | None) -> AdaptEmbConfig:
        return super().smallest(spec, config, stats).model_copy(update={"own": (0,) * len(spec.tables)})

    @classmethod
    def size(cls, spec: GroupSpec, config: AdaptEmbConfig, budget: int, stats: Stats | None) -> AdaptEmbConfig:
        config = super().size(spec, config, budget, stats)
        assert config.rows is not None
        sizes, rows, own = most_rows(spec), list(config.rows), [0] * len(spec.tables)
        hashed = [t for t, n in enumerate(sizes) if rows[t] < n]
        if not any(spec.tables[t].name in (stats or {}) for t in hashed):
            return config.model_copy(update={"own": tuple(own), "indexed": False})  # nobody knows who is frequent
        counts = [_counts(spec.tables[t], stats or {}) for t in hashed]
        indexed, seen = not all(map(falls_with_id, counts)), sum(int((c > 0).sum()) for c in counts)
        owners, shared = cls.split(spec, config, budget, indexed, seen)
        if owners:
            ends = np.cumsum([sizes[t] for t in hashed])
            first = np.searchsorted(most_frequent(counts, owners), [0, *ends])
            for t, mine in zip(hashed, np.diff(first).tolist()):
                full = mine + shared[t] >= sizes[t]
                own[t], rows[t] = (0, sizes[t]) if full else (mine, shared[t])
        return config.model_copy(update={"rows": tuple(rows), "own": tuple(own), "indexed": indexed and any(own)})


def _counts(table: TableSpec, stats: Stats) -> np.ndarray:
    """A table's, all zero where they are not known."""
    return np.asarray(stats[table.name]) if table.name in stats else np.zeros(table.num_embeddings, dtype=np.int64)
