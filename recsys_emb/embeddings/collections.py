"""Collections over a backend that stand in for TorchRec's: its configs and KeyedJaggedTensors in, its outputs out."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
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
from torchrec.fx import symbolic_trace
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.modules.embedding_modules import (
    EmbeddingBagCollectionInterface,
    EmbeddingCollectionInterface,
    get_embedding_names_by_table,
)
from torchrec.sparse.tensor_dict import maybe_td_to_kjt

from recsys_emb.embeddings import torchrec_io
from recsys_emb.embeddings.base import EmbeddingBackend, FieldReport, Stats
from recsys_emb.embeddings.groups import Groups, shares
from recsys_emb.embeddings.lookup import lookup_features
from recsys_emb.embeddings.posttraining import compress, min_compressed_bytes
from recsys_emb.embeddings.stages import Search
from recsys_emb.errors import UserError, settings_written_as
from recsys_emb.sizes import Budget


class _Shared(nn.Module):
    """What both collections have."""

    groups: Groups
    _device: torch.device

    @property
    def device(self) -> torch.device:
        return self._device

    qconfig = property(fset=torchrec_io.refuse_quantisation)
    """What a pass of ``torch.ao.quantization`` sets on every module of a model."""

    def __prepare_scriptable__(self) -> GraphModule:
        """What ``torch.jit.script`` compiles: the graph of a lookup in the present mode, on the same parameters."""
        return symbolic_trace(self)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initial values anew, in place; after ``to_empty`` too, which gives memory to what was made on meta."""
        for backend, _, _ in self.groups:
            fresh = type(backend)(backend.spec, backend.config, backend.device)
            for own, initial in zip(_tensors(backend), _tensors(fresh), strict=True):
                own.copy_(initial)
        self.groups.see_counts()

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

    def after_backward(self, step: int) -> None:
        """What methods do between backward and an optimizer's step; ``step`` counts from 0."""
        for backend, _, _ in self.groups:
            backend.after_backward(step)

    def after_step(self, step: int) -> None:
        """What methods do once the optimizer has stepped and dropped its gradients."""
        for backend, _, _ in self.groups:
            backend.after_step(step)

    def after_epoch(self, epoch: int) -> None:
        """What methods do at the end of an epoch, counted from 0."""
        for backend, _, _ in self.groups:
            backend.after_epoch(epoch)

    def search(self, score: Callable[[], float], seed: int = 1) -> Self:
        """The next stage of a method that has several, as optembed: the collection to train from here on.

        Args:
            score: how well a model with this collection predicts now, e.g. the AUC on validation rows; called often.
            seed: of every random choice.

        Raises:
            UserError: the method has no search.
        """
        for backend, _, _ in self.groups:
            if not any(isinstance(stage, Search) for stage in backend.stages(backend.config)):
                raise UserError(f"search: {backend.name} has no stage that searches")
        self.eval()
        return self._with([backend.search(score, seed) for backend, _, _ in self.groups]).train()

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
        trained = [backend.compact() for backend, _, _ in self.groups]
        if method is None:
            return self._with(trained).eval()

        with settings_written_as(_argument):
            specs = [backend.spec for backend in trained]
            by_group = shares(budget, specs, method, lambda spec: min_compressed_bytes(spec, method, stats, options))
            sizes = [s if s is None else f"{s}B" for s in by_group]  # a bare 1 is a ratio
            return self._with(compress(b, method, size, stats, options) for b, size in zip(trained, sizes)).eval()

    def _with(self, backends: Iterable[EmbeddingBackend[Any]]) -> Self:
        """A collection like this one, with other backends behind it, one per group."""
        new, groups = copy.copy(self), copy.copy(self.groups)
        for module in (new, groups):
            module._modules = dict(module._modules)  # which a copy shares
        groups.backends = nn.ModuleList(backend.to(backend.device) for backend in backends)  # the constants, too
        new.groups = groups
        return new

    def load_torchrec_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes the rows of a TorchRec collection's ``state_dict()``; for backends that store each row, as full does.

        Raises:
            UserError: a table is missing or of another shape, or the backend shares rows.
        """
        torchrec_io.load_rows(self.groups.named_tables(), state_dict)

    def _plain_tables(self) -> torchrec_io.PlainTables:
        return torchrec_io.PlainTables(self.groups.named_tables())


class BackendEmbeddingBagCollection(_Shared, EmbeddingBagCollectionInterface):
    """TorchRec's ``EmbeddingBagCollection`` with any backend behind it.

    Made by :func:`make_embedding_bag_collection`.
    """

    def __init__(
        self, groups: Groups, tables: list[EmbeddingBagConfig], is_weighted: bool, device: torch.device
    ) -> None:
        super().__init__()
        self.groups = groups
        self._configs = tables
        self._weighted = is_weighted
        self._device = device
        names = get_embedding_names_by_table(tables)
        self._names = [n for by_table in names for n in by_table]
        self._keys = [key for table in tables for key in table.feature_names]
        self._dims = [t.embedding_dim for t, by_table in zip(tables, names) for _ in by_table]

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """KeyedJaggedTensor of F keys x B bags -> KeyedTensor [B, sum of D].

        Raises:
            KeyError: a feature is missing.
            IndexError: an id is outside its table.
            ValueError: features have unequal numbers of bags, and there are no inverse indices.
        """
        features = torchrec_io.one_bag_per_row(maybe_td_to_kjt(features, None), self._keys)
        by_table: dict[int, list[Tensor]] = {}
        for backend, keys, members in self.groups:
            looked = lookup_features(backend, keys, features, weighted=self._weighted)
            means = [self._configs[members[f.table]].pooling == PoolingType.MEAN for f in keys]
            for feature, pooled in zip(keys, looked.pooled(means)):
                by_table.setdefault(members[feature.table], []).append(pooled)
        values = torch.cat([p for i in range(len(self._configs)) for p in by_table[i]], dim=1)
        return KeyedTensor(keys=self._names, length_per_key=self._dims, values=values)

    @property
    def embedding_bags(self) -> torchrec_io.PlainTables:
        """By table name what has its rows as ``weight``, as in TorchRec; for ``full``, whose rows are what is stored.

        Raises UserError when a table of another backend is taken.
        """
        return self._plain_tables()

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

    def __init__(self, groups: Groups, tables: list[EmbeddingConfig], need_indices: bool, device: torch.device) -> None:
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
        return {
            name: JaggedTensor(rows, lengths=lengths, weights=ids if self._need_indices else None)
            for name, (rows, lengths, ids) in zip(names, looked.by_feature())
        }

    @property
    def embeddings(self) -> torchrec_io.PlainTables:
        """By table name what has its rows as ``weight``, as in TorchRec; for ``full``, whose rows are what is stored.

        Raises UserError when a table of another backend is taken.
        """
        return self._plain_tables()

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


def _tensors(backend: EmbeddingBackend[Any]) -> Iterator[Tensor]:
    return chain(backend.parameters(), backend.buffers())


def _argument(setting: str) -> str:
    """How a caller of these functions writes a setting: options are arguments of their own."""
    return setting.removeprefix("options.")


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
        device: where the parameters are made; None for torch's default.
        is_weighted: as in TorchRec.
        options: the backend's own options. One that has an entry per table counts the tables of one width.

    A config's ``init_fn`` fills the rows of a table that are stored one by one; parts that make up rows together start
    so that rows have the standard deviation of its ``weight_init_min`` to ``weight_init_max``.

    Raises:
        UserError: unknown backend or option, counts that do not fit a table, or a budget out of reach.
    """
    _check_configs(tables, EmbeddingBagConfig)
    device = torch.get_default_device() if device is None else torch.device(device)
    with settings_written_as(_argument), torch.device("cpu"):  # numbers of tables, whatever torch's default
        groups = Groups(tables, backend, budget, stats, device, options)
    return BackendEmbeddingBagCollection(groups, tables, is_weighted, device)


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
    device = torch.get_default_device() if device is None else torch.device(device)
    with settings_written_as(_argument), torch.device("cpu"):  # numbers of tables, whatever torch's default
        groups = Groups(tables, backend, budget, stats, device, options)
    return BackendEmbeddingCollection(groups, tables, need_indices, device)
