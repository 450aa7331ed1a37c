"""Collections over a backend: KeyedJaggedTensors in, TorchRec's outputs or a CTR model's inputs out.

KeyedJaggedTensor handling, pooling, weights, empty bags and key order live here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagConfig,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
)
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
    get_embedding_names_by_table,
)

from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, Stats, TableSpec
from recsys_emb.embeddings.budget import Budget, budget_bytes, plan_backend


@dataclass(frozen=True)
class Feature:
    """A key of a KeyedJaggedTensor and the table of the group that embeds it."""

    key: str
    table: int


@dataclass(frozen=True)
class Looked:
    """What one lookup of F features gave: their rows one after another.

    rows: float [N, D]; lengths: int64 [F, B]; ids int64 [N]; weights float [N] or None; splits: rows of each feature.
    """

    rows: Tensor
    lengths: Tensor
    ids: Tensor
    weights: Tensor | None
    splits: list[int]

    def split(self) -> list[Looked]:
        """One feature each."""
        weights = [None] * len(self.splits) if self.weights is None else self.weights.split(self.splits)
        return [
            Looked(rows, self.lengths[i : i + 1], ids, weight, [n])
            for i, (rows, ids, weight, n) in enumerate(
                zip(self.rows.split(self.splits), self.ids.split(self.splits), weights, self.splits)
            )
        ]

    def pooled(self, means: Sequence[bool]) -> Tensor:
        """Bags summed, or averaged where ``means`` says so; empty bags are zero. float [F, B, D]."""
        features, batch = self.lengths.shape
        lengths = self.lengths.reshape(-1)
        single = self.weights is None and len(self.rows) == len(lengths) and bool((lengths == 1).all())
        if single:
            return self.rows.view(features, batch, -1)
        rows = self.rows if self.weights is None else self.rows * self.weights[:, None].to(self.rows.dtype)
        bag = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths, output_size=len(rows))
        out = rows.new_zeros(len(lengths), rows.shape[1]).index_add(0, bag, rows)
        out = out.view(features, batch, -1)
        if any(means):
            mean = torch.tensor(means, device=rows.device)[:, None]
            out = out / torch.where(mean, self.lengths.clamp(min=1), 1)[..., None]
        return out


def lookup_features(
    backend: EmbeddingBackend, features: Sequence[Feature], kjt: KeyedJaggedTensor, weighted: bool = False
) -> Looked:
    """Embeds the features with one lookup.

    Args:
        backend: the group's backend.
        features: sorted by table.
        kjt: holds at least the features' keys, in any order.
        weighted: take the KeyedJaggedTensor's weights along.

    Raises:
        KeyError: a key is missing.
    """
    keys = kjt.keys()
    missing = [f.key for f in features if f.key not in keys]
    if missing:
        raise KeyError(f"KeyedJaggedTensor without key {missing[0]!r}; it has {', '.join(keys)}")
    order = [keys.index(f.key) for f in features]
    per_key = kjt.length_per_key()
    splits = [per_key[i] for i in order]
    ids, lengths = kjt.values(), kjt.lengths().view(len(keys), -1)
    weights = kjt.weights() if weighted else None
    if order != list(range(len(keys))):
        parts = ids.split(per_key)
        ids = torch.cat([parts[i] for i in order])
        lengths = lengths[order]
        if weights is not None:
            parts = weights.split(per_key)
            weights = torch.cat([parts[i] for i in order])
    counts = torch.zeros(len(backend.spec.tables), dtype=torch.int64)
    for feature, n in zip(features, splits):
        counts[feature.table] += n
    return Looked(backend(ids.long(), counts), lengths, ids, weights, splits)


class _Groups(nn.Module):
    """Backends of a TorchRec config list: one for every embedding width, in order of first appearance."""

    def __init__(
        self,
        tables: Sequence[BaseEmbeddingConfig],
        backend: str,
        budget: Budget,
        stats: Stats | None,
        device: torch.device | None,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        names = [t.name for t in tables]
        if len(set(names)) != len(names):
            raise ValueError(f"Duplicate table name {next(n for n in names if names.count(n) > 1)}")
        self.backends = nn.ModuleList()
        self.features: list[list[Feature]] = []
        self.tables: list[list[int]] = []  # which of `tables` each group serves
        widths = list(dict.fromkeys(t.embedding_dim for t in tables))
        members = {w: [i for i, t in enumerate(tables) if t.embedding_dim == w] for w in widths}
        full = sum(4 * t.num_embeddings * t.embedding_dim for t in tables)
        total = budget_bytes(budget, full)
        for width in widths:
            spec = GroupSpec(tuple(_table_spec(tables[i]) for i in members[width]), width)
            # Groups share a budget in proportion to their full size.
            share = None if total is None else total * spec.full_bytes // full
            cls, config = plan_backend(backend, spec, share, stats, options)
            self.backends.append(cls(spec, config, device))
            self.tables.append(members[width])
            self.features.append([Feature(k, j) for j, i in enumerate(members[width]) for k in tables[i].feature_names])


def _table_spec(config: BaseEmbeddingConfig) -> TableSpec:
    if not config.feature_names:
        config.feature_names = [config.name]
    std = (config.get_weight_init_max() - config.get_weight_init_min()) / 12**0.5
    return TableSpec(config.name, config.num_embeddings, init_std=std, init_fn=config.init_fn)


class BackendEmbeddingBagCollection(EmbeddingBagCollectionInterface):
    """TorchRec's ``EmbeddingBagCollection`` with any backend behind it.

    Made by :func:`make_embedding_bag_collection`.
    """

    def __init__(
        self, groups: _Groups, tables: list[EmbeddingBagConfig], is_weighted: bool, device: torch.device
    ) -> None:
        super().__init__()
        self.groups = groups
        self._configs = tables
        self._weighted = is_weighted
        self._device = device
        names = get_embedding_names_by_table(tables)
        self._names = [n for by_table in names for n in by_table]
        self._dims = [t.embedding_dim for t, by_table in zip(tables, names) for _ in by_table]

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """KeyedJaggedTensor of F keys x B bags -> KeyedTensor [B, sum of D]."""
        by_table: dict[int, list[Tensor]] = {}
        for backend, keys, members in zip(self.groups.backends, self.groups.features, self.groups.tables):
            looked = lookup_features(backend, keys, features, self._weighted)
            means = [self._configs[members[f.table]].pooling == PoolingType.MEAN for f in keys]
            for feature, pooled in zip(keys, looked.pooled(means)):
                by_table.setdefault(members[feature.table], []).append(pooled)
        values = torch.cat([p for i in range(len(self._configs)) for p in by_table[i]], dim=1)
        return KeyedTensor(keys=self._names, length_per_key=self._dims, values=values)

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]:
        return self._configs

    def is_weighted(self) -> bool:
        return self._weighted

    @property
    def device(self) -> torch.device:
        return self._device


class BackendEmbeddingCollection(EmbeddingCollectionInterface):
    """TorchRec's ``EmbeddingCollection`` with any backend behind it.

    Made by :func:`make_embedding_collection`.
    """

    def __init__(
        self, groups: _Groups, tables: list[EmbeddingConfig], need_indices: bool, device: torch.device
    ) -> None:
        super().__init__()
        self.groups = groups
        self._configs = tables
        self._need_indices = need_indices
        self._device = device
        self._names = get_embedding_names_by_table(tables)

    def forward(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """KeyedJaggedTensor -> per feature a JaggedTensor of values [n, D] and the feature's lengths [B]."""
        names = [n for by_table in self._names for n in by_table]
        looked = lookup_features(self.groups.backends[0], self.groups.features[0], features)
        rows, ids = looked.rows.split(looked.splits), looked.ids.split(looked.splits)
        return {
            name: JaggedTensor(rows[i], lengths=looked.lengths[i], weights=ids[i] if self._need_indices else None)
            for i, name in enumerate(names)
        }

    def embedding_configs(self) -> list[EmbeddingConfig]:
        return self._configs

    def need_indices(self) -> bool:
        return self._need_indices

    def embedding_dim(self) -> int:
        return self._configs[0].embedding_dim

    def embedding_names_by_table(self) -> list[list[str]]:
        return self._names

    @property
    def device(self) -> torch.device:
        return self._device


def make_embedding_bag_collection(
    tables: list[EmbeddingBagConfig],
    backend: str = "full",
    budget: Budget = None,
    stats: Stats | None = None,
    device: torch.device | None = None,
    is_weighted: bool = False,
    **options: Any,
) -> BackendEmbeddingBagCollection:
    """A drop-in for ``torchrec.EmbeddingBagCollection(tables)`` on any backend.

    Args:
        tables: TorchRec's own configs.
        backend: name of a backend (``recsys_emb.list_backends()``).
        budget: ratio to the fp32 full tables, bytes, or a size such as ``"20MB"``; None for unbounded.
        stats: per table, int64 [num_embeddings] counts of the ids in training.
        device: where the parameters are made.
        is_weighted: as in TorchRec.
        options: the backend's own options.

    Raises:
        UserError: unknown backend or option, or a budget out of reach.
    """
    groups = _Groups(tables, backend, budget, stats, device, options)
    return BackendEmbeddingBagCollection(groups, tables, is_weighted, device or torch.device("cpu"))


def make_embedding_collection(
    tables: list[EmbeddingConfig],
    backend: str = "full",
    budget: Budget = None,
    stats: Stats | None = None,
    device: torch.device | None = None,
    need_indices: bool = False,
    **options: Any,
) -> BackendEmbeddingCollection:
    """A drop-in for ``torchrec.EmbeddingCollection(tables)``; arguments as in :func:`make_embedding_bag_collection`."""
    widths = sorted({t.embedding_dim for t in tables})
    if len(widths) != 1:
        raise ValueError(f"all tables of an EmbeddingCollection have one embedding_dim, got {widths}")
    groups = _Groups(tables, backend, budget, stats, device, options)
    return BackendEmbeddingCollection(groups, tables, need_indices, device or torch.device("cpu"))
