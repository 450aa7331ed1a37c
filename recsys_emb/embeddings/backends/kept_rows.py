"""The rows that a search kept, at one width per table, and an index of their ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, FieldReport, GroupSpec, Stats, register
from recsys_emb.embeddings.composed import OwnRows, Part, PartsBackend, starts_of
from recsys_emb.embeddings.nested import NestedPart, by_width, narrow, widen
from recsys_emb.embeddings.row_index import RowIndex, index_bytes
from recsys_emb.embeddings.tables import block_table
from recsys_emb.errors import SettingError


class KeptRowsConfig(BackendConfig):
    """What a search found for each table: columns of its rows, a first-order one aside, and how many ids keep one."""

    widths: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()


@register("kept_rows", listed=False)
class KeptRowsBackend(PartsBackend[KeptRowsConfig]):
    """Some ids of every table keep a row, the others have the vector zero: what ``optembed`` finds, trains and serves.

    Tables of one width lie in one physical table. Bytes: the kept rows, 4 * width each, and per width the index of
    their ids, at most 3/16 a byte for every id (:class:`RowIndex`).
    """

    summary = "rows that a search kept"
    Config = KeptRowsConfig

    def __init__(self, spec: GroupSpec, config: KeptRowsConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        parts = {}
        for width, tables in by_width(config.widths).items():
            rows = [config.rows[t] for t in tables]
            parts[f"width_{width}"] = KeptPart(tables, width, rows, spec, device)
        self.parts = nn.ModuleDict(parts)

    @classmethod
    def plan(
        cls, spec: GroupSpec, config: KeptRowsConfig, budget: int | None = None, stats: Stats | None = None
    ) -> KeptRowsConfig:
        raise SettingError(
            "backend", f"{cls.name} is what a search finds, and cannot be trained without one; use optembed"
        )

    @classmethod
    @torch.no_grad()
    def chosen(cls, spec: GroupSpec, net: NestedPart, masks: Sequence[Tensor]) -> KeptRowsBackend:
        """The rows of a supernet at its present widths.

        Args:
            spec: the tables.
            net: full tables.
            masks: bool [num_embeddings] of each table: which ids keep their row.
        """
        config = KeptRowsConfig(widths=tuple(net.widths.tolist()), rows=tuple(int(m.sum()) for m in masks))
        kept = cls(spec, config, net.table.weight.device)
        for part in kept._kept_parts():
            part.index.fill(torch.cat([masks[t] for t in part.tables]).nonzero().view(-1))
            part.take(net)
        return kept

    def inherit(self, source: EmbeddingBackend[Any]) -> None:
        net = next((part for part in source.modules() if isinstance(part, NestedPart)), None)
        if net is None:
            super().inherit(source)
            return
        for part in self._kept_parts():
            part.take(net)

    def _kept_parts(self) -> list[KeptPart]:
        return [cast(KeptPart, part) for part in self.parts.values()]


class KeptPart(Part):
    """Tables of one width of which some ids keep a row.

    Args:
        tables: which tables of the group, rising.
        width: columns of a row, a first-order one aside.
        rows: how many ids of each table keep theirs.
        spec: the group.
        device: where the rows are made.
    """

    def __init__(
        self, tables: Sequence[int], width: int, rows: Sequence[int], spec: GroupSpec, device: torch.device | str | None
    ) -> None:
        sizes = [spec.tables[t].num_embeddings for t in tables]
        stds = [spec.tables[t].init_std for t in tables]
        table = block_table(rows, spec.columns(width), stds, device)
        super().__init__(tables, OwnRows(sizes), table, form="kept rows", rows=rows)
        self.width, self.vector_dim = width, spec.vector_dim
        self.index = RowIndex(sum(sizes), sum(rows), device)
        self.starts, self.ends = starts_of(sizes), torch.tensor(sizes).cumsum(0)

    @torch.no_grad()
    def take(self, net: NestedPart) -> None:
        """The supernet's rows of the ids that keep theirs."""
        ids = self.table.shard(self.index.kept().cpu())
        shift = net.starts.cpu()[self.tables] - self.starts.cpu()  # from a table's place here to its place there
        at = ids + shift.index_select(0, torch.bucketize(ids.contiguous(), self.ends.cpu(), right=True))
        rows = net.table(at.to(net.table.weight.device))
        self.table.weight.copy_(narrow(rows, self.width, self.vector_dim))

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows, found = self.index(self.transform(ids, counts))
        weight = self.table.weight
        vectors = self.table(rows) if self.index.rows else weight.new_zeros(ids.shape[0], weight.shape[1])
        if found is not None:
            vectors = vectors * found[:, None]
        return widen(vectors, self.width, self.vector_dim)

    def report(self, ids: Sequence[int], names: Sequence[str]) -> list[FieldReport]:
        shared = FieldReport("(shared)", sum(ids), 0, 0, index_bytes(self.index.ids, self.index.rows), "index of rows")
        return [*super().report(ids, names), shared] if shared.bytes else super().report(ids, names)


def kept_bytes(spec: GroupSpec, found: KeptRowsConfig) -> int:
    """Bytes of the backend: rows and indexes."""
    total = 0
    for width, tables in by_width(found.widths).items():
        ids, rows = sum(spec.tables[t].num_embeddings for t in tables), sum(found.rows[t] for t in tables)
        total += 4 * rows * spec.columns(width) + index_bytes(ids, rows)
    return total
