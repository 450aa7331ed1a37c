"""The uncompressed table, the reference of every other method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_emb.embeddings.base import (
    BackendConfig,
    EmbeddingBackend,
    FieldReport,
    GroupSpec,
    register,
)
from recsys_emb.embeddings.composed import OwnRows, own_table
from recsys_emb.errors import UserError


@register("full")
class FullBackend(EmbeddingBackend[BackendConfig]):
    """One row of D floats for every id: 4 N D bytes.

    All tables of the group lie in one physical table, so a batch costs one gather whatever the number of fields.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "full").serving_bytes()
        640000
    """

    summary = "one row of D floats for every id"
    grows = True

    def __init__(self, spec: GroupSpec, config: BackendConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.table = own_table(spec.tables, spec.embedding_dim, device)
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return self.table(self.rows_of(ids, counts))

    def describe(self) -> list[FieldReport]:
        dim = self.spec.embedding_dim
        return [
            FieldReport(t.name, t.num_embeddings, t.num_embeddings, dim, 4 * dim * t.num_embeddings, "full")
            for t in self.spec.tables
        ]

    def plain_rows(self, table: int) -> Tensor:
        start = int(self.rows_of.starts[table])
        return self.table.weight[start : start + self.spec.tables[table].num_embeddings]

    @torch.no_grad()
    def load_rows(self, table: int, rows: Tensor) -> None:
        spec = self.spec.tables[table]
        shape = (spec.num_embeddings, self.spec.embedding_dim)
        if tuple(rows.shape) != shape:
            raise UserError(f"table {spec.name!r}: its rows have shape {shape}, got {tuple(rows.shape)}")
        self.plain_rows(table).copy_(rows)
