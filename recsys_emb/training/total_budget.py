"""A budget of all that is served: embeddings, vocabularies and the rest of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys_emb.config import RunConfig
from recsys_emb.data.fingerprints import most_bytes, planned_bytes
from recsys_emb.data.store import EncodedDataset
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec
from recsys_emb.embeddings.budget import min_bytes, plan_backend
from recsys_emb.embeddings.posttraining import PostTraining
from recsys_emb.embeddings.same_rows import same_rows
from recsys_emb.errors import BudgetTooSmall
from recsys_emb.models.base import build_model
from recsys_emb.sizes import Budget, TotalBudget

_FITS = 5
"""How often a method is fitted to find the most that it may take beside fingerprints, whose bytes depend on it."""
_NEAR = 0.02
"""Share of the budget that may be left."""


@dataclass(frozen=True)
class Beside:
    """What is served beside embeddings.

    Attributes:
        dense: bytes of the rest of the model.
        sizes: ids by vocabulary.
        raw: bytes of the vocabularies' raw values.
        bits: of fingerprints; None where raw values are served.
    """

    dense: int
    sizes: dict[str, int]
    raw: int
    bits: int | None

    def least_vocabulary(self) -> int:
        """Bytes of the vocabularies where every id has the same row."""
        if self.bits is None:
            return self.raw
        return len(self.sizes) * planned_bytes(np.zeros(1, np.int64), self.bits)

    def vocabulary(self, backend: EmbeddingBackend[Any] | None = None) -> int:
        """Bytes of the vocabularies beside a serving form; at most, without one."""
        if self.bits is None:
            return self.raw
        if backend is None:
            return sum(most_bytes(size, self.bits) for size in self.sizes.values())
        tables = range(len(backend.spec.tables))
        return sum(planned_bytes(same_rows(backend, table), self.bits) for table in tables)


def fingerprint_bits(config: RunConfig) -> int | None:
    """Of a run's artifact, as its ``compact`` section says; None where it holds raw values."""
    made = config.compact
    return made.fingerprint_bits if made is not None and made.vocabulary == "fingerprint" else None


def beside(config: RunConfig, dataset: EncodedDataset, spec: GroupSpec, bits: int | None) -> Beside:
    """What a run's embeddings are served with; nothing is allocated.

    Args:
        config: of the run.
        dataset: its vocabularies.
        spec: the tables.
        bits: of fingerprints; None for raw values.
    """
    e, stats = config.embedding, dataset.stats()
    least, sized = plan_backend(e.backend, spec, min_bytes(e.backend, spec, stats, e.options), stats, e.options)
    model = build_model(config.model, dataset.schema, least(spec, sized, "meta"))
    dense = sum(tensor.nbytes for tensor in model.dense_state().values())
    listed = {} if dataset.schema.ids == "hash64" else dataset.schema.vocabularies
    return Beside(dense, listed, dataset.manifest.get("vocabulary_bytes") or 0, bits if listed else None)


@contextmanager
def within_total(budget: Budget, rest: Callable[[], Beside], fitted: bool = False) -> Iterator[Budget]:
    """What embeddings may take: what a total leaves, any other budget as it is.

    Args:
        budget: as it was given.
        rest: what is served beside.
        fitted: fingerprints will be counted beside what a method makes, so only the least that they take is left out.

    Raises:
        BudgetTooSmall: it was raised inside; of a total it says what all needs at least.
    """
    if not isinstance(budget, TotalBudget):
        yield budget
        return
    served = rest()
    vocabulary = served.least_vocabulary() if fitted else served.vocabulary()
    taken = served.dense + vocabulary
    try:
        yield max(budget.bytes - taken, 2)  # 1 would be a ratio
    except BudgetTooSmall as error:
        own = f"{vocabulary:,} of vocabularies" if not fitted or served.bits is None else "fingerprints"
        also = f" with {own} and {served.dense:,} of the network"
        raise BudgetTooSmall(error.method, budget.bytes, error.min_bytes + taken, also) from None


def compressed_within(
    budget: Budget, rest: Callable[[], Beside], compress: Callable[[Budget], PostTraining[Any]]
) -> PostTraining[Any]:
    """What a post-training method makes within a budget.

    Beside fingerprints a total is met by fitting several times: the fewer rows differ, the less they take.

    Args:
        budget: as it was given.
        rest: what is served beside.
        compress: the method, with what embeddings may take.

    Raises:
        BudgetTooSmall: the total is below the least that was found.
    """
    served = rest() if isinstance(budget, TotalBudget) else None
    if served is None or served.bits is None:
        with within_total(budget, rest) as own:
            return compress(own)
    assert isinstance(budget, TotalBudget)
    with within_total(budget, lambda: served, fitted=True) as left:
        assert isinstance(left, int)
        return _largest(left, served, compress)


def _largest(left: int, served: Beside, compress: Callable[[Budget], PostTraining[Any]]) -> PostTraining[Any]:
    """The largest form found that fits in ``left`` bytes with its fingerprints beyond the least, which grow with it."""
    least = served.least_vocabulary()
    sure, high = left - (served.vocabulary() - least), left
    best, low, own, smallest = None, 0, max(sure, left // 2, 2), left + 1
    for _ in range(_FITS):
        try:
            made = compress(own)
        except BudgetTooSmall as error:
            if best is not None or error.min_bytes > left:
                raise
            own = error.min_bytes
            made = compress(own)
        size = made.serving_bytes()
        room = left - (served.vocabulary(made) - least)
        if size <= room:
            best, low, high = made, own, min(high, room)
            if room - size <= _NEAR * left:
                break
            own = (low + high) // 2
        else:
            smallest, high = size + left - room, own
            own = max(room, 2) if best is None else (low + high) // 2
        if high - low <= _NEAR * left:
            break
    if best is None:
        raise BudgetTooSmall(made.name, left, smallest)
    return best
