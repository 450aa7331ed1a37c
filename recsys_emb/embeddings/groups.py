"""The backends behind a TorchRec config list, one for every embedding width, within one budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torchrec.modules.embedding_configs import BaseEmbeddingConfig, DataType

from recsys_emb.embeddings import torchrec_io
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, Stats, TableSpec
from recsys_emb.embeddings.budget import min_bytes, plan_backend, water_fill
from recsys_emb.embeddings.lookup import Feature
from recsys_emb.errors import BudgetTooSmall, UserError
from recsys_emb.sizes import Budget, budget_bytes


class Groups(nn.Module):
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
        specs = [GroupSpec(tuple(table_spec(tables[i]) for i in m), width) for m, width in zip(self.tables, widths)]
        by_group = shares(budget, specs, backend, lambda spec: min_bytes(backend, spec, stats, options))
        planned = [plan_backend(backend, spec, share, stats, options) for spec, share in zip(specs, by_group)]
        self.backends = nn.ModuleList(cls(spec, config, device) for spec, (cls, config) in zip(specs, planned))
        self.backends.to(device)  # the constants, too
        self.features = [
            [Feature(k, j) for j, i in enumerate(members) for k in tables[i].feature_names] for members in self.tables
        ]
        self.stats = stats or {}
        self.see_counts()

    def see_counts(self) -> None:
        """Tells every backend the counts that it was planned with."""
        for backend, _, _ in self:
            backend.see_counts(self.stats)

    def __iter__(self) -> Iterator[tuple[EmbeddingBackend[Any], list[Feature], list[int]]]:
        """Each group's backend, features, and tables."""
        for backend, features, tables in zip(self.backends, self.features, self.tables):
            yield cast(EmbeddingBackend[Any], backend), features, tables

    def named_tables(self) -> Iterator[torchrec_io.NamedTable]:
        """Each table's name, backend, and number in the backend's group."""
        for backend, _, _ in self:
            for i, table in enumerate(backend.spec.tables):
                yield table.name, backend, i


def shares(
    budget: Budget, specs: Sequence[GroupSpec], method: str, min_bytes: Callable[[GroupSpec], int]
) -> list[int | None]:
    """The bytes of a budget that each group gets: as its full size, but no less than the method needs there.

    One group gets all; whoever plans it sees whether that is enough.

    Raises:
        SettingError: the budget is no size, or below ``min_bytes`` of several groups together.
    """
    full = [spec.full_bytes for spec in specs]
    total = budget_bytes(budget, sum(full))
    if total is None or len(specs) == 1:
        return [total] * len(specs)
    least = [min_bytes(spec) for spec in specs]
    if total < sum(least):
        raise BudgetTooSmall(method, total, sum(least))
    return list(water_fill(full, least, total, balance=1))


def table_spec(config: BaseEmbeddingConfig) -> TableSpec:
    if config.data_type != DataType.FP32:
        raise UserError(f"table {config.name!r}: data_type {config.data_type.value}; rows are trained in FP32")
    if not config.feature_names:  # as TorchRec does
        config.feature_names = [config.name]
    std = (config.get_weight_init_max() - config.get_weight_init_min()) / 12**0.5
    return TableSpec(config.name, config.num_embeddings, init_std=std, init_fn=config.init_fn)
