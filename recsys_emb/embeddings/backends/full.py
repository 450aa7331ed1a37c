"""The uncompressed table, the reference of every other method."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, Stats, out_of_reach, register
from recsys_emb.embeddings.tables import EmbeddingTable, fill_uniform


@register("full")
class FullBackend(EmbeddingBackend):
    """One row of D floats for every id: 4 N D bytes.

    All tables of the group lie in one physical table, so a batch costs one gather whatever the number of fields.
    """

    def __init__(self, spec: GroupSpec, config: BackendConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.table = EmbeddingTable(spec.num_embeddings, spec.embedding_dim, device)
        start, starts = 0, []
        for table in spec.tables:
            starts.append(start)
            rows = self.table.weight.data[start : start + table.num_embeddings]
            if table.init_fn is None:
                fill_uniform(rows, table.init_std)
            elif rows.device.type != "meta":
                table.init_fn(rows)
            start += table.num_embeddings
        self.starts = torch.tensor(starts)  # row of each table's id 0

    @classmethod
    def plan(
        cls, spec: GroupSpec, config: BackendConfig, budget: int | None = None, stats: Stats | None = None
    ) -> BackendConfig:
        if budget is not None and budget < spec.full_bytes:
            raise out_of_reach("full", budget, spec.full_bytes)
        return config

    def lookup(self, ids: Tensor, counts: Tensor) -> Tensor:
        return self.table(ids + self.starts.repeat_interleave(counts, output_size=len(ids)).to(ids.device))
