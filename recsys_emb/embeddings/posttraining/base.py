"""The contract of a post-training method: trained rows in, a serving backend out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self, cast

import torch
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, C, EmbeddingBackend, GroupSpec, Stats
from recsys_emb.embeddings.budget import backend_config, check_budget, checked_stats
from recsys_emb.errors import SettingError, UserError
from recsys_emb.registry import Registry
from recsys_emb.sizes import Budget, budget_bytes


class ErrorCost(NamedTuple):
    """What errors of a table's looked-up rows cost.

    metric: float64 [D, D], symmetric. An error e [D] of a row raises the loss by about e S e^T / 2 a lookup, in the
    mean over lookups (the Gauss-Newton form of its second order, Martens, 2020, section 6).
    relative: float32 [N], what a lookup of each id costs beside the mean.
    """

    metric: Tensor
    relative: Tensor


Sensitivity = Mapping[str, ErrorCost]
"""What errors cost, by the name of the table."""


class PostTraining(EmbeddingBackend[C]):
    """A serving form made from the rows of a trained backend.

    An instance has only arrays, no gradients: ``state_dict()`` is what is stored. Like every backend it is built from
    ``(spec, config)``, where ``config`` has all sizes fixed, and its arrays are loaded into it.
    """

    uses_sensitivity: ClassVar[bool] = False
    """Whether ``fit`` takes ``sensitivity=`` beside its arguments: what errors cost, where somebody can say."""

    @classmethod
    @abstractmethod
    def fit(
        cls, trained: EmbeddingBackend[Any], config: C, budget: int | None = None, stats: Stats | None = None
    ) -> Self:
        """The serving form of ``trained``.

        Args:
            trained: any backend whose ids are listed; its rows are read in chunks.
            config: the user's options.
            budget: bytes that the serving form may take at most, no less than ``min_bytes``; None leaves the method's
                own default.
            stats: id counts of the training split, where known.

        Raises:
            UserError: the method needs counts that are not known.
        """

    def array(self, name: str) -> Tensor:
        """A stored array: a buffer or, while its floats are trained on, a parameter."""
        return cast(Tensor, getattr(self, name))

    @classmethod
    def filled(cls, spec: GroupSpec, config: C, arrays: Mapping[str, Tensor]) -> Self:
        """An instance with these arrays, which are not copied."""
        made = cls(spec, config, "meta")
        made.load_state_dict(dict(arrays), assign=True)
        return made


posttraining_registry: Registry[type[PostTraining[Any]]] = Registry(
    "post-training method", "recsys_emb.embeddings.posttraining", "recsys_emb.posttraining"
)
register = posttraining_registry.register


def compress(
    trained: EmbeddingBackend[Any],
    method: str,
    budget: Budget = None,
    stats: Stats | None = None,
    options: Mapping[str, Any] | BackendConfig | None = None,
    sensitivity: Callable[[], Sensitivity] | None = None,
) -> PostTraining[Any]:
    """The serving form that a post-training method makes of a trained backend.

    Args:
        trained: any backend.
        method: one of ``list_posttraining()``.
        budget: a ratio to the fp32 full tables, bytes, or a size such as ``"20MB"``.
        stats: per table, int64 [num_embeddings] counts of the ids in training.
        options: the method's own options.
        sensitivity: finds out what errors cost; called only for methods that use it.

    Raises:
        UserError: unknown method or option, one that is found by fitting, ids without a list, or a budget out of
            reach.
    """
    cls, config, limit, known = plan_compression(trained.spec, method, budget, stats, options)
    more = {"sensitivity": sensitivity()} if cls.uses_sensitivity and sensitivity is not None else {}
    return cls.fit(trained, config, limit, known, **more).eval()


def plan_compression(
    spec: GroupSpec,
    method: str,
    budget: Budget = None,
    stats: Stats | None = None,
    options: Mapping[str, Any] | BackendConfig | None = None,
) -> tuple[type[PostTraining[Any]], BackendConfig, int | None, Stats]:
    """What ``compress`` goes by, without any rows: the class, its options, the bytes of the budget, and the counts.

    Raises UserError as ``compress`` does.
    """
    cls, config, known = _checked(spec, method, stats, options)
    limit = budget_bytes(budget, spec.full_bytes)
    check_budget(method, cls, spec, config, limit, known)
    return cls, config, limit, known


def min_compressed_bytes(
    spec: GroupSpec, method: str, stats: Stats | None = None, options: Mapping[str, Any] | BackendConfig | None = None
) -> int:
    """Bytes of the smallest serving form of a post-training method. Raises UserError as ``compress`` does."""
    cls, config, known = _checked(spec, method, stats, options)
    return cls.min_bytes(spec, config, known)


def _checked(
    spec: GroupSpec, method: str, stats: Stats | None, options: Mapping[str, Any] | BackendConfig | None
) -> tuple[type[PostTraining[Any]], BackendConfig, Stats]:
    """A method's class, its options and the counts that it may use."""
    cls = posttraining_registry.get(method)
    if spec.hashed:
        first = next(t.name for t in spec.tables if t.hashed)
        raise UserError(f"{method} walks all rows, but {first!r} holds 63-bit hashes, which have no list")
    return cls, posttraining_options(method, options or {}), checked_stats(spec, stats or {})


def posttraining_options(method: str, options: Mapping[str, Any] | BackendConfig) -> BackendConfig:
    """The typed options of a method. Raises UserError on an unknown method, SettingError on what it does not take."""
    cls = posttraining_registry.get(method)
    config = backend_config(cls, options)
    if not isinstance(options, BackendConfig):
        for name in config.model_fields_set & set(cls.fitted):
            if getattr(config, name) == cls.Config.model_fields[name].default:
                continue  # as a config that was written down has it
            free = sorted(set(cls.Config.model_fields) - set(cls.fitted))
            raise SettingError(f"options.{name}", f"{method} finds it by itself; allowed: {', '.join(free)}")
    return config


def all_rows(backend: EmbeddingBackend[Any]) -> Iterator[tuple[int, slice, Tensor]]:
    """All rows of all tables in chunks: the table, the place among the rows of all, float32 [<= chunk, D]."""
    start = 0
    for table in range(len(backend.spec.tables)):
        for rows in backend.rows(table):
            yield table, slice(start, start + len(rows)), rows.float()
            start += len(rows)


def saturated(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Values in a narrower float type; those beyond its range become its largest."""
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)


def narrowest(largest: int) -> torch.dtype:
    """The smallest integer type that holds 0..largest."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if largest <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
