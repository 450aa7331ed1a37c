"""Memory budgets: bytes -> a backend's sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from recsys_emb.embeddings.base import (
    BackendConfig,
    EmbeddingBackend,
    GroupSpec,
    Stats,
    backend_registry,
)
from recsys_emb.errors import BudgetTooSmall, SettingError, UserError
from recsys_emb.validation import explain

_NO_FULL_SIZE = 1 << 62  # a ratio of the "full size" of 2^63 - 1 ids, not bytes that anyone has


def water_fill(full: Sequence[int], least: Sequence[int], total: int, balance: float) -> list[int]:
    """Shares of ``total`` that grow with full^balance and stay between ``least`` and ``full``.

    Small tables reach their full size at a level where large ones are still far from it; what they leave goes to the
    others.

    Args:
        full: what each table takes uncompressed.
        least: what it cannot do without; their sum is at most ``total``.
        total: what there is.
        balance: 1 gives every table the same ratio, 0 the same share.

    Returns:
        One share per table; their sum is at most ``total``.
    """
    if sum(full) <= total:
        return list(full)
    weights = [f**balance for f in full]

    def shares(level: float) -> list[int]:
        return [min(f, max(lo, int(level * w))) for f, lo, w in zip(full, least, weights)]

    low, high = 0.0, max(f / w for f, w in zip(full, weights)) + 1
    for _ in range(128):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(shares(middle)) <= total else (low, middle)
    return shares(low)


def backend_config(backend: type[EmbeddingBackend[Any]], options: Mapping[str, Any] | BackendConfig) -> BackendConfig:
    """The typed config of ``options``. Raises SettingError naming the key and what is allowed."""
    if isinstance(options, BackendConfig):
        return options
    try:
        return backend.Config.model_validate(dict(options))
    except ValidationError as error:
        setting, _, problem = explain(error, backend.Config, prefix="options").partition(": ")
        raise SettingError(setting, problem) from None


def plan_backend(
    name: str,
    spec: GroupSpec,
    budget: int | None = None,
    stats: Stats | None = None,
    options: Mapping[str, Any] | BackendConfig | None = None,
) -> tuple[type[EmbeddingBackend[Any]], BackendConfig]:
    """The class and the sized config of a backend for a group, without allocating anything; ``budget`` in bytes.

    Raises:
        UserError: unknown backend or option, counts that are not those of a table, or the budget is out of reach.
    """
    backend = backend_registry.get(name)
    _check_hashed(name, backend, spec, budget)
    config, known = backend_config(backend, options or {}), checked_stats(spec, stats or {})
    check_budget(name, backend, spec, config, budget, known)
    return backend, backend.plan(spec, config, budget, known)


def min_bytes(
    name: str, spec: GroupSpec, stats: Stats | None = None, options: Mapping[str, Any] | BackendConfig | None = None
) -> int:
    """Bytes of the smallest serving form of a backend for a group. Raises UserError as ``plan_backend`` does."""
    backend = backend_registry.get(name)
    return backend.min_bytes(spec, backend_config(backend, options or {}), checked_stats(spec, stats or {}))


def check_budget(
    name: str,
    method: type[EmbeddingBackend[Any]],
    spec: GroupSpec,
    config: BackendConfig,
    budget: int | None,
    stats: Stats,
) -> None:
    """Raises BudgetTooSmall when a backend, or a post-training method, cannot be as small as ``budget`` bytes."""
    if budget is not None and budget < (least := method.min_bytes(spec, config, stats)):
        raise BudgetTooSmall(name, budget, least)


def _check_hashed(name: str, backend: type[EmbeddingBackend[Any]], spec: GroupSpec, budget: int | None) -> None:
    """Raises SettingError where 63-bit hashes lack what a method or a budget needs."""
    if spec.hashed:
        first = next(t.name for t in spec.tables if t.hashed)
        if backend.needs_id_list:
            raise SettingError(
                "backend",
                f"{name} needs the list of ids, but {first!r} holds 63-bit hashes (data prepared with --ids hash64)",
            )
        if budget is None or budget >= _NO_FULL_SIZE:
            raise SettingError(
                "budget", f"{first!r} holds 63-bit hashes, which have no full size; give bytes such as 20MB"
            )


def checked_stats(spec: GroupSpec, stats: Stats) -> Stats:
    """The counts of the group's tables. Raises UserError naming the table when they are not one integer an id."""
    own = {t.name: np.asarray(stats[t.name]) for t in spec.tables if t.name in stats}
    for table in spec.tables:
        counts = own.get(table.name)
        if counts is not None and (counts.shape != (table.num_embeddings,) or counts.dtype.kind not in "iu"):
            raise UserError(
                f"stats: table {table.name!r} has {table.num_embeddings} ids, so it needs as many integer counts; "
                f"got {counts.dtype} {list(counts.shape)}"
            )
    return own
