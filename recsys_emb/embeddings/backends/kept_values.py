"""Single values that a method kept, trained on in their places; the others stay 0."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_emb.embeddings.backends.full import FullBackend
from recsys_emb.embeddings.base import (
    BackendConfig,
    EmbeddingBackend,
    FieldReport,
    GroupSpec,
    Stats,
    StorageItem,
    register,
)
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.posttraining._csr import Kept, csr_bytes, packed, stored_rows
from recsys_emb.embeddings.posttraining.base import all_rows
from recsys_emb.embeddings.posttraining.prune import PruneConfig, Pruned
from recsys_emb.embeddings.row_index import RowIndex
from recsys_emb.embeddings.tables import EmbeddingTable, block_table
from recsys_emb.errors import SettingError


class KeptValuesConfig(BackendConfig):
    """What a method found: stored rows and kept values of each table."""

    rows: tuple[int, ...] = ()
    values: tuple[int, ...] = ()


@register("kept_values", listed=False)
class KeptValuesBackend(EmbeddingBackend[KeptValuesConfig]):
    """Values that learn under a mask that stays. Training holds the rows that have any, all their D columns and a bit
    each; what is served are sparse rows (:class:`CSR`), or full tables where these take less."""

    summary = "single values that a method kept"
    Config = KeptValuesConfig
    mask: Tensor
    """uint8 [R, ceil(D / 8)], a bit for each column."""

    def __init__(self, spec: GroupSpec, config: KeptValuesConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])
        self.table = block_table(config.rows, spec.embedding_dim, [t.init_std for t in spec.tables], device)
        self.index = RowIndex(spec.num_embeddings, sum(config.rows), device)
        bits = torch.empty(sum(config.rows), -(-spec.embedding_dim // 8), dtype=torch.uint8, device=device)
        self.register_buffer("mask", bits)

    @classmethod
    def plan(
        cls, spec: GroupSpec, config: KeptValuesConfig, budget: int | None = None, stats: Stats | None = None
    ) -> KeptValuesConfig:
        raise SettingError("backend", f"{cls.name} is what another backend finds, and cannot be trained without one")

    @classmethod
    @torch.no_grad()
    def chosen(cls, source: EmbeddingBackend[Any]) -> KeptValuesBackend:
        """The values that are not 0 in the rows that a backend gives outside training."""
        spec, dim = source.spec, source.spec.embedding_dim
        values, bits = [0] * len(spec.tables), []
        for table, _, rows in all_rows(source):
            keep = rows != 0
            values[table] += int(keep.sum())
            bits.append(_packed_bits(keep))
        mask = torch.cat(bits)
        filled = (mask != 0).any(1)
        stored = stored_rows(spec.num_embeddings, dim, int(filled.sum()), sum(values))
        if stored == spec.num_embeddings or _is_dense(spec, stored, sum(values)):
            filled = torch.ones_like(filled)
        counts = [int(part.sum()) for part in filled.split([t.num_embeddings for t in spec.tables])]
        made = cls(spec, KeptValuesConfig(rows=tuple(counts), values=tuple(values)), source.device)
        made.index.fill(filled.nonzero()[:, 0])
        made.mask.copy_(mask[filled])
        end = 0
        for _, place, rows in all_rows(source):
            start, end = end, end + int(filled[place].sum())
            made.table.weight[start:end] = rows[filled[place]]
        return made

    @torch.no_grad()
    def inherit(self, source: EmbeddingBackend[Any]) -> None:
        """Of a backend that trains full tables, its ``table``, the rows as they are stored."""
        if isinstance(source, KeptValuesBackend):
            super().inherit(source)
            return
        ids = self.table.shard(self.index.kept().cpu()).to(self.device)
        self.table.weight.copy_(cast(EmbeddingTable, source.table)(ids))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows, keep = self._kept(self.rows_of(ids, counts))
        return self.table(rows) * keep if self.index.rows else keep.to(torch.float32)

    def _kept(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Stored rows int64 [n] of ids numbered through all tables, and which of their values are kept, bool [n, D]."""
        if not self.index.rows:
            return places, torch.zeros([len(places), self.spec.embedding_dim], dtype=torch.bool, device=places.device)
        rows, found = self.index(places)
        bits = self.mask.index_select(0, rows)[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=rows.device)
        keep = (bits & 1).flatten(1)[:, : self.spec.embedding_dim].bool()
        return rows, keep if found is None else keep & found[:, None]

    # -- what is served -----------------------------------------------------------------------------------------------

    def _served(self) -> EmbeddingBackend[Any]:
        """The serving form, on the meta device."""
        if _is_dense(self.spec, sum(self.config.rows), sum(self.config.values)):
            return FullBackend(self.spec, BackendConfig(), "meta")
        return Pruned(self.spec, PruneConfig(rows=self.config.rows, values=self.config.values), "meta")

    def storage(self) -> list[StorageItem]:
        return self._served().storage()

    def describe(self) -> list[FieldReport]:
        return self._served().describe()

    @torch.no_grad()
    def compact(self) -> EmbeddingBackend[Any]:
        return sparse_form(self, self._chunks())

    def _chunks(self) -> Iterator[Kept]:
        for table, place, rows in all_rows(self):
            places = torch.arange(place.start, place.stop, device=rows.device)
            yield table, place, rows, self._kept(places)[1]


def _packed_bits(keep: Tensor) -> Tensor:
    """bool [n, D] -> uint8 [n, ceil(D / 8)], the first column in the lowest bit."""
    bits = F.pad(keep, (0, -keep.shape[1] % 8)).view(len(keep), -1, 8)
    return (bits * (1 << torch.arange(8, device=keep.device))).sum(2).to(torch.uint8)


def _is_dense(spec: GroupSpec, rows: int, values: int) -> bool:
    """Whether so many values in so many stored rows take no less than full tables."""
    return csr_bytes(spec.num_embeddings, spec.embedding_dim, rows, values) >= spec.full_bytes


def sparse_bytes(spec: GroupSpec, values: int, filled: int) -> int:
    """Bytes of ``values`` values in ``filled`` rows: sparse rows, or full tables where these take less."""
    ids, dim = spec.num_embeddings, spec.embedding_dim
    return min(spec.full_bytes, csr_bytes(ids, dim, stored_rows(ids, dim, filled, values), values))


def sparse_form(trained: EmbeddingBackend[Any], chunks: Iterable[Kept]) -> EmbeddingBackend[Any]:
    """The serving form of kept values of all rows, in chunks; full tables where sparse rows would take more."""
    spec = trained.spec
    rows, values, arrays = packed(spec, chunks, trained.device)
    if not _is_dense(spec, sum(rows), sum(values)):
        config = PruneConfig(structure="elements", weighting="none", rows=rows, values=values)
        return Pruned.filled(spec, config, {f"stored.{name}": array for name, array in arrays.items()}).eval()
    full = FullBackend(spec, BackendConfig(), trained.device)
    with torch.no_grad():
        for table in range(len(spec.tables)):
            full.load_rows(table, torch.cat(list(trained.rows(table))))
    return full.eval()
