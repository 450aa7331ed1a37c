"""Collections over a backend: KeyedJaggedTensors in, TorchRec's outputs or a CTR model's inputs out.

KeyedJaggedTensor handling, pooling, weights, empty bags and key order live here and nowhere else.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    KeyedTensor,
    PoolingType,
)
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
    get_embedding_names_by_table,
)
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from recsys_emb.embeddings import torchrec_io
from recsys_emb.embeddings.base import EmbeddingBackend, FieldReport, GroupSpec, Stats, TableSpec, out_of_reach
from recsys_emb.embeddings.budget import Budget, budget_bytes, plan_backend, water_fill
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.errors import OutOfReach, UserError


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
        """Bags summed, or averaged where ``means`` says so; empty bags are zero. float [F, B, D].

        With weights the average is the weighted sum over the number of ids.
        """
        features, batch = self.lengths.shape
        lengths = self.lengths.reshape(-1)
        single = self.weights is None and len(self.rows) == len(lengths) and bool((lengths == 1).all())
        if single:
            return self.rows.view(features, batch, self.rows.shape[1])
        rows = self.rows if self.weights is None else self.rows * self.weights[:, None].to(self.rows.dtype)
        bag = torch.arange(len(lengths), device=rows.device).repeat_interleave(lengths, output_size=len(rows))
        out = rows.new_zeros(len(lengths), rows.shape[1]).index_add(0, bag, rows)
        out = out.view(features, batch, rows.shape[1])
        if any(means):
            mean = torch.tensor(means, device=rows.device)[:, None]
            out = out / torch.where(mean, self.lengths.clamp(min=1), 1)[..., None]
        return out


def lookup_features(
    backend: EmbeddingBackend[Any], features: Sequence[Feature], kjt: KeyedJaggedTensor, weighted: bool = False
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
    if kjt.values().is_floating_point():
        raise TypeError(f"ids must be integers, got {kjt.values().dtype}")
    order = [keys.index(f.key) for f in features]
    per_key = kjt.length_per_key()
    splits = [per_key[i] for i in order]
    ids, lengths = kjt.values(), kjt.lengths().view(len(keys), kjt.stride())
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
    """Backends of a TorchRec config list: one for every embedding width, in order of first appearance.

    ``tables`` are the numbers of the tables that each serves, ``features`` its features.
    """

    def __init__(
        self,
        tables: Sequence[BaseEmbeddingConfig],
        backend: str,
        budget: Budget,
        stats: Stats | None,
        device: torch.device | str | None,
        options: Mapping[str, Any],
    ) -> None:
        super().__init__()
        names = [t.name for t in tables]
        if len(set(names)) != len(names):
            raise ValueError(f"Duplicate table name {next(n for n in names if names.count(n) > 1)}")
        unknown = sorted(set(stats or {}) - set(names))
        if unknown:
            raise UserError(f"stats: no table {unknown[0]!r}; there are {', '.join(names)}")
        widths = list(dict.fromkeys(t.embedding_dim for t in tables))
        self.tables = [[i for i, t in enumerate(tables) if t.embedding_dim == width] for width in widths]
        specs = [GroupSpec(tuple(_table_spec(tables[i]) for i in m), width) for m, width in zip(self.tables, widths)]
        total = budget_bytes(budget, sum(s.full_bytes for s in specs))
        planned = [
            plan_backend(backend, spec, share, stats, options)
            for spec, share in zip(specs, _shares(specs, total, backend, stats, options))
        ]
        self.backends = nn.ModuleList(cls(spec, config, device) for spec, (cls, config) in zip(specs, planned))
        self.features = [
            [Feature(k, j) for j, i in enumerate(members) for k in tables[i].feature_names] for members in self.tables
        ]

    def __iter__(self) -> Iterator[tuple[EmbeddingBackend[Any], list[Feature], list[int]]]:
        """Each group's backend, features, and tables."""
        for backend, features, tables in zip(self.backends, self.features, self.tables):
            yield cast(EmbeddingBackend[Any], backend), features, tables

    def named_tables(self) -> Iterator[torchrec_io.NamedTable]:
        """Each table's name, backend, and number in the backend's group."""
        for backend, _, _ in self:
            for i, table in enumerate(backend.spec.tables):
                yield table.name, backend, i


def _shares(
    specs: Sequence[GroupSpec], total: int | None, backend: str, stats: Stats | None, options: Mapping[str, Any]
) -> list[int | None]:
    """What each group may take of a budget: as its full size, but no less than the method needs there."""
    if total is None or len(specs) == 1:
        return [total] * len(specs)
    least = []
    for spec in specs:
        try:
            plan_backend(backend, spec, 1, stats, options)
            least.append(1)
        except OutOfReach as error:
            least.append(error.least)
    if sum(least) > total:
        raise out_of_reach(backend, total, sum(least))
    return [*water_fill([s.full_bytes for s in specs], least, total, balance=1)]


def _table_spec(config: BaseEmbeddingConfig) -> TableSpec:
    if config.data_type != DataType.FP32:
        raise UserError(f"table {config.name!r}: data_type {config.data_type.value}; rows are trained in FP32")
    if not config.feature_names:  # as TorchRec does
        config.feature_names = [config.name]
    std = (config.get_weight_init_max() - config.get_weight_init_min()) / 12**0.5
    return TableSpec(config.name, config.num_embeddings, init_std=std, init_fn=config.init_fn)


class _Shared(nn.Module):
    """What both collections have."""

    groups: _Groups
    _device: torch.device

    @property
    def device(self) -> torch.device:
        return self._device

    def serving_bytes(self) -> int:
        """Bytes of all stored arrays once compacted."""
        return sum(backend.serving_bytes() for backend, _, _ in self.groups)

    def describe(self) -> list[FieldReport]:
        """What every table stores."""
        return [line for backend, _, _ in self.groups for line in backend.describe()]

    def aux_loss(self) -> Tensor | None:
        """What the method adds to the loss, from the last lookup; None for most."""
        terms = [t for backend, _, _ in self.groups if (t := backend.aux_loss()) is not None]
        return torch.stack(terms).sum() if terms else None

    def search(self, score: Callable[[], float], seed: int = 1) -> Self:
        """The next stage of a method that has several, as optembed: the collection to train from here on.

        Args:
            score: how well a model with this collection predicts now, e.g. the AUC on validation rows; called often.
            seed: of every random choice.

        Raises:
            UserError: the method has no search.
        """
        self.eval()

        def found(backend: EmbeddingBackend[Any]) -> EmbeddingBackend[Any]:
            try:
                return backend.search(score, seed)
            except NotImplementedError:
                raise UserError(f"search: {backend.name} is trained in one stage and has none") from None

        return self._with(found).train()

    def compact(
        self, method: str | None = None, budget: Budget = None, stats: Stats | None = None, **options: Any
    ) -> Self:
        """The serving form, which stores ``serving_bytes()`` and no more; this collection stays as it is.

        Args:
            method: a post-training method (``recsys-emb backends`` lists them) that makes it smaller; None for the
                trained form.
            budget: of the method: a ratio to the fp32 full tables, bytes, or a size such as ``"20MB"``.
            stats: per table, int64 [num_embeddings] counts of the ids in training.
            options: the method's own options.

        Raises:
            UserError: unknown method or option, options without a method, or a budget out of reach.
        """
        if method is None and (budget is not None or options):
            raise UserError("compact: a budget and options belong to a post-training method; name one")
        full = sum(backend.spec.full_bytes for backend, _, _ in self.groups)
        total = budget_bytes(budget, full)

        def served(backend: EmbeddingBackend[Any]) -> EmbeddingBackend[Any]:
            compacted = backend.compact()
            if method is None:
                return compacted
            share = None if total is None else total * backend.spec.full_bytes // full
            return compress(compacted, method, share, stats, options)

        return self._with(served).eval()

    def _with(self, make: Callable[[EmbeddingBackend[Any]], EmbeddingBackend[Any]]) -> Self:
        """A collection like this one, with what ``make`` makes of each backend."""
        new, groups = copy.copy(self), copy.copy(self.groups)
        for module in (new, groups):
            module._modules = dict(module._modules)  # which a copy shares
        groups.backends = nn.ModuleList(make(backend) for backend, _, _ in self.groups)
        new.groups = groups
        return new

    def load_torchrec_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes the rows of a TorchRec collection's ``state_dict()``; for backends that store each row, as full does.

        Raises:
            UserError: a table is missing or of another shape, or the backend shares rows.
        """
        torchrec_io.load_rows(self.groups.named_tables(), state_dict)


class BackendEmbeddingBagCollection(_Shared, EmbeddingBagCollectionInterface):
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
        features = torchrec_io.one_bag_per_row(maybe_td_to_kjt(features, None))
        by_table: dict[int, list[Tensor]] = {}
        for backend, keys, members in self.groups:
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

    def to_embedding_bag_collection(self) -> EmbeddingBagCollection:
        """A plain TorchRec collection with the rows that a serving lookup gives now: uncompressed, on the CPU."""
        plain = EmbeddingBagCollection(torchrec_io.copy_configs(self._configs), is_weighted=self._weighted)
        torchrec_io.write_rows(self.groups.named_tables(), plain.state_dict())
        return plain


class BackendEmbeddingCollection(_Shared, EmbeddingCollectionInterface):
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
        ((backend, keys, _),) = self.groups
        looked = lookup_features(backend, keys, maybe_td_to_kjt(features, None))
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

    def to_embedding_collection(self) -> EmbeddingCollection:
        """A plain TorchRec collection with the rows that a serving lookup gives now: uncompressed, on the CPU."""
        plain = EmbeddingCollection(torchrec_io.copy_configs(self._configs), need_indices=self._need_indices)
        torchrec_io.write_rows(self.groups.named_tables(), plain.state_dict())
        return plain


def _check_configs(tables: Sequence[Any], kind: type[BaseEmbeddingConfig]) -> None:
    for table in tables:
        if not isinstance(table, kind):
            raise UserError(f"tables: expected {kind.__name__}, got {type(table).__name__}")


def make_embedding_bag_collection(
    tables: list[EmbeddingBagConfig],
    backend: str = "full",
    budget: Budget = None,
    stats: Stats | None = None,
    device: torch.device | str | None = None,
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
        options: the backend's own options. One that has an entry per table counts the tables of one width.

    A config's ``init_fn`` fills the rows of a table that are stored one by one; parts that make up rows together start
    so that rows have the standard deviation of its ``weight_init_min`` to ``weight_init_max``.

    Raises:
        UserError: unknown backend or option, counts that do not fit a table, or a budget out of reach.
    """
    _check_configs(tables, EmbeddingBagConfig)
    groups = _Groups(tables, backend, budget, stats, device, options)
    return BackendEmbeddingBagCollection(groups, tables, is_weighted, torch.device(device or "cpu"))


def make_embedding_collection(
    tables: list[EmbeddingConfig],
    backend: str = "full",
    budget: Budget = None,
    stats: Stats | None = None,
    device: torch.device | str | None = None,
    need_indices: bool = False,
    **options: Any,
) -> BackendEmbeddingCollection:
    """A drop-in for ``torchrec.EmbeddingCollection(tables)``; arguments as in :func:`make_embedding_bag_collection`."""
    _check_configs(tables, EmbeddingConfig)
    widths = sorted({t.embedding_dim for t in tables})
    if len(widths) != 1:
        raise ValueError(f"all tables of an EmbeddingCollection have one embedding_dim, got {widths}")
    groups = _Groups(tables, backend, budget, stats, device, options)
    return BackendEmbeddingCollection(groups, tables, need_indices, torch.device(device or "cpu"))
