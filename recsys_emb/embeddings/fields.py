"""The embedding layer of a CTR model: all fields of a batch through one lookup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from recsys_emb.data.jagged import jagged, joined
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, TableSpec
from recsys_emb.embeddings.counted_l2 import CountedL2
from recsys_emb.embeddings.lookup import Feature, lookup_features, pool

if TYPE_CHECKING:
    from torchrec import JaggedTensor, KeyedJaggedTensor


def group_spec(schema: DatasetSchema, embedding_dim: int, init_std: float, first_order: bool = False) -> GroupSpec:
    """One table for each vocabulary that a field uses, in the order of the fields."""
    names = dict.fromkeys(f.vocabulary for f in schema.embedded)
    hashed = schema.ids == "hash64"
    return GroupSpec(
        tuple(TableSpec(n, schema.vocabularies[n], init_std=init_std, hashed=hashed) for n in names),
        embedding_dim,
        first_order,
    )


class FieldEmbedding(nn.Module):
    """Embeds a batch's fields with one backend lookup.

    Fields that share a vocabulary (a target item and its history) share a table. Multi-valued fields are averaged.
    Ids are those of a ``Batch``, which were checked where it was made.

    Args:
        schema: the dataset's fields.
        backend: serves ``group_spec(schema, width, ...)``.
        pool_sequences: append each sequence as one more field, its average, instead of returning it unpooled.

    Attributes:
        l2: regularises the ids of each batch in training.
    """

    l2: CountedL2 | None = None

    def __init__(self, schema: DatasetSchema, backend: EmbeddingBackend, pool_sequences: bool) -> None:
        super().__init__()
        self.backend = backend
        self.width = backend.spec.embedding_dim
        self.pooled_keys = schema.sparse_keys + (schema.sequence_keys if pool_sequences else [])
        self._kept = [] if pool_sequences else schema.sequence_keys
        tables = [t.name for t in backend.spec.tables]
        features = [Feature(f.name, tables.index(f.vocabulary)) for f in schema.embedded]
        self._features = sorted(features, key=lambda f: f.table)
        looked = [f.key for f in self._features]
        self._at = {key: looked.index(key) for key in self.pooled_keys + self._kept}
        self._single = {f.name for f in schema.single_valued}
        self._all_single = self._single == set(looked) and looked == self.pooled_keys

    @property
    def num_fields(self) -> int:
        """F, the number of pooled vectors of a row."""
        return len(self.pooled_keys)

    def forward(
        self, sparse: KeyedJaggedTensor, sequences: KeyedJaggedTensor | None
    ) -> tuple[Tensor, dict[str, JaggedTensor]]:
        """Pooled vectors [B, F, width] in the order of ``pooled_keys``, and unpooled sequences by name."""
        kjt = sparse if sequences is None else joined([sparse, sequences])
        looked = lookup_features(self.backend, self._features, kjt, checked=True)
        if self.l2 is not None and self.training:
            self.l2.apply(looked.rows, looked.ids, self._counts(looked.sizes))
        if self._all_single:
            return _by_row(looked.rows.view(self.num_fields, kjt.stride(), self.width)), {}
        parts = looked.by_feature()
        vectors = []
        for key in self.pooled_keys:
            rows, lengths, _ = parts[self._at[key]]
            vectors.append(rows if key in self._single else pool(rows, lengths) / lengths.clamp(min=1)[:, None])
        kept = {}
        for key in self._kept:
            rows, lengths, _ = parts[self._at[key]]
            kept[key] = jagged(rows, lengths)
        return _by_row(torch.stack(vectors)), kept

    def _counts(self, sizes: list[int]) -> list[int]:
        """Ids of each table, from those of each feature."""
        counts = [0] * len(self.backend.spec.tables)
        for feature, n in zip(self._features, sizes):
            counts[feature.table] += n
        return counts


def _by_row(fields: Tensor) -> Tensor:
    """[F, B, D] -> [B, F, D]; without a copy, unless in a graph, which would hold for B = 1 or for the rest only."""
    rows = fields.transpose(0, 1)
    return rows.contiguous() if torch.compiler.is_compiling() else rows
