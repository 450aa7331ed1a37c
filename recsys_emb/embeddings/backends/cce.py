"""Clustered compositional embeddings: ids share rows that are clustered while they train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.backends._pointers import MOST_POINTED, PointedRows, pointer_bytes
from recsys_emb.embeddings.base import FieldReport, GroupSpec, Stats, register
from recsys_emb.embeddings.budget import water_fill
from recsys_emb.embeddings.composed import ComposedBackend, Part, SizedConfig, check_length, own_parts, size_error
from recsys_emb.embeddings.posttraining._kmeans import lloyd, nearest
from recsys_emb.embeddings.tables import block_table
from recsys_emb.errors import SettingError

IDS = 1 << 18
"""Looked at at a time."""
CHUNKS = (4, 2, 1)
"""Numbers of chunks that a budget chooses from, the best first: of more parts fewer ids have all in common."""


class CCEConfig(SizedConfig):
    """Options of ``cce``."""

    clusterings: int = Field(
        3, ge=0, le=255, description="epochs, from the first on, that end with a clustering; 0: hashes"
    )
    sample: int = Field(1 << 17, ge=1, description="ids that a clustering looks at, of larger tables; more: slower")
    rounds: int = Field(10, ge=1, description="of k-means, at most")
    balance: float = Field(0.5, ge=0, le=1, description="a table's share grows with ids^balance until it is full")
    seed: int = Field(0, description="of hash functions and clusterings; no effect on size")
    chunks: int | None = Field(
        None,
        ge=1,
        description="parts of the columns, each with pointers of its own; more: more bytes an id, fewer ids alike, "
        "slower; absent: 4, or as many as the budget has room for",
    )
    rows: tuple[tuple[int, ...], ...] | None = Field(
        None, description="of each table, rows of a chunk that are pointed to and hashed to; (N,) keeps a table full"
    )

    @property
    def sized(self) -> bool:
        return self.rows is not None


@register("cce")
class CCEBackend(ComposedBackend[CCEConfig]):
    """Clustered compositional embeddings (Tsang, Ahle, "Clustering the Sketch: Dynamic Compression for Embedding
    Tables", NeurIPS 2023).

    The columns are cut into c chunks. Of each an id has E[pointer(id)] + R[h(id)], a row that it points to and a hashed
    one. Pointers begin as hashes. At the end of an epoch each chunk's vectors, of a sample of the ids, are clustered by
    k-means: E becomes the centres, each id points to its nearest, h is another hash, and a row of R is the mean of what
    the centres lack of its ids (as in the authors' code; the paper: zero). So ids that have become alike share a row
    from there on, and R tells them apart anew.

    Bytes of a table: c N ceil(log2 P) / 8 of packed pointers, and 4 D (P + H) of P pointed and H hashed rows; 1 for the
    number of clusterings. At most half of a table's share goes to pointers and the rows they point to. A table whose
    share holds all its ids is full. Without a budget: a tenth of the full tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "cce", budget=0.1).serving_bytes()
        63977
    """

    summary = "ids share rows that are clustered at the ends of epochs"
    Config = CCEConfig

    def __init__(self, spec: GroupSpec, config: CCEConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.rows is not None
        shared = [t for t, rows in enumerate(config.rows) if len(rows) == 2]
        self.parts = own_parts([t for t in range(len(config.rows)) if t not in shared], spec, device)
        if shared:
            self.parts["shared"] = ClusteredPart(shared, spec, config, device)

    def after_epoch(self, epoch: int) -> None:
        if epoch < self.config.clusterings and "shared" in self.parts:
            cast(ClusteredPart, self.parts["shared"]).cluster(epoch)

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def checked(cls, spec: GroupSpec, config: CCEConfig) -> CCEConfig:
        dim = spec.embedding_dim
        if config.chunks is not None and config.chunks > dim:
            raise SettingError("options.chunks", f"{config.chunks} is too many; allowed: 1 to {dim}")
        if config.rows is None:
            return config
        check_length("rows", spec, config.rows)
        for table, rows in zip(spec.tables, config.rows):
            full = rows == (table.num_embeddings,)
            if not full and not (len(rows) == 2 and 2 <= rows[0] <= MOST_POINTED and rows[1] >= 1):
                allowed = f"[{table.num_embeddings}], or 2 to {MOST_POINTED:,} pointed and at least 1 hashed"
                raise size_error("rows", table, list(rows), allowed)
        return config.model_copy(update={"chunks": config.chunks or min(CHUNKS[0], dim)})

    @classmethod
    def smallest(cls, spec: GroupSpec, config: CCEConfig, stats: Stats | None) -> CCEConfig:
        return cls.size(spec, config, min(sum(_least(spec, chunks)) for chunks in _choices(spec, config)), stats)

    @classmethod
    def size(cls, spec: GroupSpec, config: CCEConfig, budget: int, stats: Stats | None) -> CCEConfig:
        sizes = [t.num_embeddings for t in spec.tables]
        full = [4 * spec.embedding_dim * ids for ids in sizes]
        chunks = next(c for c in _choices(spec, config) if sum(_least(spec, c)) <= budget)
        shares = water_fill(full, _least(spec, chunks), budget, config.balance)
        rows = tuple(_rows(ids, spec.embedding_dim, chunks, share) for ids, share in zip(sizes, shares))
        return config.model_copy(update={"chunks": chunks, "rows": rows})


class ClusteredPart(Part):
    """Tables that share rows."""

    transform: PointedRows

    def __init__(
        self, tables: Sequence[int], spec: GroupSpec, config: CCEConfig, device: torch.device | str | None
    ) -> None:
        assert config.rows is not None
        assert config.chunks is not None
        self.config, self.chunks = config, config.chunks
        chosen, rows = [spec.tables[t] for t in tables], [(config.rows[t][0], config.rows[t][1]) for t in tables]
        ids = [t.num_embeddings for t in chosen]
        width = -(-spec.embedding_dim // self.chunks)
        stored = [self.chunks * sum(pair) for pair in rows]
        table = block_table(stored, width, [t.init_std / 2**0.5 for t in chosen], device)
        transform = PointedRows(ids, rows, self.chunks, config.seed, device)
        super().__init__(tables, transform, table, SumOfTwo(spec.embedding_dim), "clustered", stored)

    def report(self, ids: Sequence[int], names: Sequence[str]) -> list[FieldReport]:
        pointers = [self.chunks * pointer_bytes(n, pointed) + 1 for n, (pointed, _) in zip(ids, self.transform.rows)]
        return [replace(line, bytes=line.bytes + more) for line, more in zip(super().report(ids, names), pointers)]

    @torch.no_grad()
    def cluster(self, epoch: int) -> None:
        """Points every id to the nearest of new rows, the centres of what ids have now, and hashes it anew."""
        generator = torch.Generator().manual_seed(self.config.seed + epoch)
        for table in range(len(self.tables)):
            for chunk in range(self.chunks):
                self._cluster(table, chunk, generator)
        self.transform.rounds += 1
        self.table.agree(self.transform.stream)

    def _cluster(self, table: int, chunk: int, generator: torch.Generator) -> None:
        find, ids, (pointed, hashed) = self.transform, self.transform.sizes[table], self.transform.rows[table]
        rows = int(find.starts[table, chunk]) + torch.arange(pointed + hashed, device=self.table.weight.device)
        values = self.table.current(rows)

        def vectors(of: Tensor) -> Tensor:
            place = torch.full_like(of, table)
            to, hashed_to = find.pointed(place, of)[:, chunk], find.hashed(place, of, find.rounds)[:, chunk]
            return values.index_select(0, to) + values.index_select(0, hashed_to)

        some = torch.randperm(ids, generator=generator)[: self.config.sample].to(rows.device)
        known = vectors(some)
        centres = known[torch.arange(pointed, device=rows.device) % len(known)]
        centres, _ = lloyd(known, torch.ones_like(known[:, 0]), centres, self.config.rounds)
        self.table.agree(centres)
        cells, missed, times = [], torch.zeros_like(values[pointed:]), values.new_zeros(hashed)
        for of in torch.arange(ids, device=rows.device).split(IDS):
            mine = vectors(of)
            cells.append(nearest(mine, centres)[0])
            anew = find.hashed(torch.full_like(of, table), of, find.rounds + 1)[:, chunk] - pointed
            missed.index_add_(0, anew, mine - centres[cells[-1]])
            times += torch.bincount(anew, minlength=hashed)
        find.point(table, chunk, torch.cat(cells))
        self.table.reset(rows, torch.cat([centres, missed / times.clamp(min=1)[:, None]]))


class SumOfTwo:
    """Each chunk's pointed and hashed row, [n, 2 c, W], added up; the chunks side by side, [n, D]."""

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def __call__(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        pointed, hashed = rows.chunk(2, dim=1)
        return (pointed + hashed).flatten(1)[:, : self.dim]


def _choices(spec: GroupSpec, config: CCEConfig) -> Sequence[int]:
    return [c for c in CHUNKS if c <= spec.embedding_dim] if config.chunks is None else (config.chunks,)


def _bytes(ids: int, dim: int, chunks: int, pointed: int, hashed: int) -> int:
    return 1 + chunks * (pointer_bytes(ids, pointed) + 4 * -(-dim // chunks) * (pointed + hashed))


def _least(spec: GroupSpec, chunks: int) -> list[int]:
    """Bytes that each table needs at least: two rows to point to and a hashed one, or all its rows."""
    dim = spec.embedding_dim
    ids = [t.num_embeddings for t in spec.tables]
    return [min(4 * dim * n, _bytes(n, dim, chunks, 2, 1)) for n in ids]


def _rows(ids: int, dim: int, chunks: int, share: int) -> tuple[int, ...]:
    """All ids of a table, where ``share`` bytes hold them, or rows that are pointed to and hashed to."""
    if share >= 4 * dim * ids or _bytes(ids, dim, chunks, 2, 1) > share:
        return (ids,)
    powers = [1 << bits for bits in range(1, MOST_POINTED.bit_length()) if 1 << bits <= max(2, ids)]
    pointed = max((p for p in powers if _bytes(ids, dim, chunks, p, 0) <= share / 2), default=2)
    return pointed, (share - _bytes(ids, dim, chunks, pointed, 0)) // (4 * chunks * -(-dim // chunks))
