"""CAFE: a sketch finds the ids that matter while training, and these get rows of their own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.backends._hashed import most_rows
from recsys_emb.embeddings.backends._hot_sketch import HotSketch, contained
from recsys_emb.embeddings.backends._own_and_hashed import OwnAndHashed, OwnRowsBackend, OwnRowsConfig
from recsys_emb.embeddings.backends.adapt_emb import AdaptEmbBackend, AdaptEmbConfig
from recsys_emb.embeddings.base import EmbeddingBackend, FieldReport, GroupSpec, Stats, StorageItem, register
from recsys_emb.embeddings.counts import per_id, tally
from recsys_emb.embeddings.distinct import distinct
from recsys_emb.embeddings.row_index import RowIndex
from recsys_emb.errors import SettingError

NOBODY = torch.iinfo(torch.int64).max
STAY = 1.1
"""By how much an owner's score counts more than others', so that ids of like scores do not take turns."""


class CafeConfig(OwnRowsConfig):
    """Options of ``cafe``."""

    score: Literal["gradient", "count"] = Field(
        "gradient", description="what makes an id hot: the norms of its vectors' gradients, or how often it comes"
    )
    every: int = Field(50, ge=1, description="steps after which rows change owners; fewer: follows sooner, slower")
    slots: float = Field(
        8.0,
        ge=1,
        description="slots of the sketch for each row of a hot id, 12 bytes each, in training memory only; more: "
        "more of the hottest ids are found (of a Zipf stream 0.6 with 4, 0.9 with 8: see its test)",
    )
    owners: int | None = Field(
        None, ge=0, description="how many ids, of all tables together, own a row; absent: by the budget"
    )

    @property
    def sized(self) -> bool:
        return self.rows is not None and self.owners is not None


@register("cafe")
class CafeBackend(OwnRowsBackend[CafeConfig]):
    """CAFE (Zhang et al., "CAFE: Towards Compact, Adaptive, and Fast Embedding for Large-scale Recommendation Models",
    SIGMOD 2024, sections 3.2 and 3.3).

    A :class:`HotSketch` sums each id's scores, the norms of its gradients. Every so many steps the ids with the highest
    sums, of all tables together, own a row each, the others share M hashed ones. An id that becomes hot takes its
    vector along, with the optimizer state of a row that begins; one that no longer is goes back to its hashed row.

    Serving form: :class:`AdaptEmbBackend` with an index, 4 D (owners + M) bytes and at most 3/16 byte an id. Sketch and
    owners' list, up to 12 slots + 16 bytes a hot row, are training memory. It takes no counts. Moves cost what the
    sketch has, everything else what the batch has. The paper's levels between hot and not are left out.
    Without a budget: a tenth of the full tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "cafe", budget=0.1).serving_bytes()
        63964
    """

    summary = "ids with large gradients own rows, found while training; the rest share hashed ones"

    Config = CafeConfig

    def hashed_part(self, hashed: Sequence[int], device: torch.device | str | None) -> HotAndHashed:
        return HotAndHashed(hashed, self.spec, self.config, device)

    @property
    def shared(self) -> HotAndHashed | None:
        """The part of the tables with fewer rows than ids."""
        return cast(HotAndHashed, self.parts["hashed"]) if self.config.owners and "hashed" in self.parts else None

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def checked(cls, spec: GroupSpec, config: CafeConfig) -> CafeConfig:
        config = super().checked(spec, config)
        if (config.owners is None) != (config.rows is None):
            missing = "owners" if config.owners is None else "rows"
            raise SettingError(f"options.{missing}", "missing; owners and rows go together")
        if config.owners is not None and config.rows is not None:
            free = sum(n - rows for n, rows in zip(most_rows(spec), config.rows))
            if config.owners > free:
                raise SettingError("options.owners", f"{config.owners}; allowed: 0 to {free:,}, with these rows")
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: CafeConfig, stats: Stats | None) -> CafeConfig:
        return super().smallest(spec, config, stats).model_copy(update={"owners": 0})

    @classmethod
    def size(cls, spec: GroupSpec, config: CafeConfig, budget: int, stats: Stats | None) -> CafeConfig:
        config = super().size(spec, config, budget, stats)
        owners, shared = cls.split(spec, config, budget, True, spec.num_embeddings)
        rows = tuple(shared.get(t, rows) for t, rows in enumerate(config.rows or ()))
        return config.model_copy(update={"rows": rows, "owners": owners})

    def storage(self) -> list[StorageItem]:
        return self._planned().storage()

    def describe(self) -> list[FieldReport]:
        return self._planned().describe()

    def _planned(self) -> AdaptEmbBackend:
        """The serving form as far as it is known before anybody owns a row: its sizes."""
        part = self.shared
        own = [0] * len(self.spec.tables)
        if part is not None:
            own[part.tables[0]] = part.first_hashed
        return self._served(own, "meta")

    def _served(self, own: Sequence[int], device: torch.device | str) -> AdaptEmbBackend:
        config = self.config
        sizes = {"rows": config.rows, "own": tuple(own), "indexed": any(own)}
        made = {"balance": config.balance, "seed": config.seed, "frequent": config.frequent}
        return AdaptEmbBackend(self.spec, AdaptEmbConfig(**made, **sizes), device)

    # -- training -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def after_backward(self, step: int) -> None:
        part = self.shared
        if part is not None:
            keys, norms = part.take_gradient()
            processes = self.total(norms.new_ones(()))  # by which the loss of each is scaled
            scores = norms / processes if self.config.score == "gradient" else norms.fill_(1)
            part.sketch.add(*_summed(self.gathered(keys), self.gathered(scores)))

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        if self.shared is not None and (step + 1) % self.config.every == 0:
            self.shared.change_owners()

    # -- serving ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def compact(self) -> EmbeddingBackend[AdaptEmbConfig]:
        part, own = self.shared, [0] * len(self.spec.tables)
        if part is None:
            made = self._served(own, self.device)
            made.load_state_dict(self.state_dict(), strict=False)
            return made.eval()
        keys, rows = part.keys_and_rows()
        for t, number in zip(part.tables, part.counts_of(keys)):
            own[t] = number
        made = self._served(own, self.device)
        served = cast(OwnAndHashed, made.shared)
        if "own" in made.parts:
            made.parts["own"].load_state_dict(self.parts["own"].state_dict())
        weight = part.table.weight
        served.table.weight.copy_(torch.cat([weight[rows], weight[part.first_hashed :]]))
        cast(RowIndex, served.index).fill(keys)
        return made.eval()


def _summed(keys: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Each different key and the sum of its scores."""
    places, numbers = distinct(keys)
    return keys[places], scores.new_zeros(len(places)).index_add_(0, numbers, scores)


class HotAndHashed(OwnAndHashed):
    """Rows of hot ids of any table, then each table's hashed rows. Keys are ids numbered through all tables.

    Args:
        tables: which tables of the group, rising.
        spec: the group.
        config: sizes.
        device: where the rows are made.
    """

    owner_keys: Tensor
    owner_rows: Tensor

    def __init__(
        self, tables: Sequence[int], spec: GroupSpec, config: CafeConfig, device: torch.device | str | None
    ) -> None:
        assert config.rows is not None
        assert config.owners is not None
        own = [config.owners] + [0] * (len(tables) - 1)
        super().__init__(tables, own, [config.rows[t] for t in tables], spec, config.seed, False, device)
        self.sketch = HotSketch(int(config.slots * config.owners), device)
        self.register_buffer("owner_keys", torch.empty(config.owners, dtype=torch.int64, device=device))
        self.register_buffer("owner_rows", torch.empty(config.owners, dtype=torch.int64, device=device))
        self._gradient: tuple[Tensor, Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Nobody owns a row."""
        self.owner_keys.fill_(NOBODY)
        self.owner_rows.copy_(torch.arange(self.first_hashed))

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows = self.hashed(ids, counts)
        if not self.first_hashed:
            return self.table(rows)
        keys = self.all_ids(ids, counts)
        at = torch.searchsorted(self.owner_keys, keys).clamp(max=self.first_hashed - 1)
        owns = self.owner_keys.index_select(0, at) == keys
        vectors = self.table(torch.where(owns, self.owner_rows.index_select(0, at), rows))
        if self.training and isinstance(vectors, Tensor) and vectors.requires_grad:  # not while it is traced
            vectors.register_hook(partial(self._see, keys))
        return vectors

    def _see(self, keys: Tensor, gradient: Tensor) -> None:
        self._gradient = keys, gradient.norm(dim=1)

    def take_gradient(self) -> tuple[Tensor, Tensor]:
        """The keys of the last lookup, int64 [n], and the norms of their vectors' gradients, float [n]; once."""
        taken, self._gradient = self._gradient, None
        return (self.owner_keys[:0], self.table.weight.new_zeros(0)) if taken is None else taken

    def change_owners(self) -> None:
        """Gives rows to the hottest keys, with the vectors that they have now."""
        hottest = self.sketch.hottest(self.first_hashed, self.owner_keys, STAY).sort().values
        come, stay = hottest[~contained(hottest, self.owner_keys)], contained(self.owner_keys, hottest)
        if not len(come):
            return
        free = self.owner_rows[~stay]
        self.table.reset(free[: len(come)], self.table.current(self.hashed_rows_of(come)))
        nobody = self.owner_keys.new_full((len(free) - len(come),), NOBODY)
        keys, order = torch.cat([self.owner_keys[stay], come, nobody]).sort(stable=True)
        self.owner_rows.copy_(torch.cat([self.owner_rows[stay], free])[order])
        self.owner_keys.copy_(keys)

    def keys_and_rows(self) -> tuple[Tensor, Tensor]:
        """As many keys as there are rows for hot ids, rising, int64, and the row of each: owners, then any others."""
        owned = int((self.owner_keys != NOBODY).sum())
        keys = torch.arange(self.first_hashed, device=self.owner_keys.device)
        others = keys[~contained(keys, self.owner_keys)][: self.first_hashed - owned]
        rows = torch.cat([self.owner_rows[:owned], self.hashed_rows_of(others)])
        keys, order = torch.cat([self.owner_keys[:owned], others]).sort()
        return keys, rows[order]

    def counts_of(self, keys: Tensor) -> list[int]:
        """How many of the keys are of each table."""
        return tally(torch.bucketize(keys, self.all_ids.starts[1:].to(keys.device), right=True), len(self.tables))

    def hashed_rows_of(self, keys: Tensor) -> Tensor:
        """The rows that keys, rising, have while they own none."""
        counts = self.counts_of(keys)
        return self.hashed(keys - per_id(self.all_ids.starts, counts, keys), counts)
