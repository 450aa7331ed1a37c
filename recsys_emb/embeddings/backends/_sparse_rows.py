"""Full tables that lose single values while they are trained, down to a budget: what ``pep`` and others have in common.

N ids, D columns, T tables.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.backends.kept_values import KeptValuesBackend, sparse_bytes, sparse_form
from recsys_emb.embeddings.base import EmbeddingBackend, FieldReport, GroupSpec, Stats, StorageItem
from recsys_emb.embeddings.composed import ComposedBackend, OwnRows, SizedConfig, own_table
from recsys_emb.embeddings.posttraining._csr import csr_bytes, threshold
from recsys_emb.embeddings.posttraining._worth import Worth
from recsys_emb.embeddings.posttraining.base import all_rows
from recsys_emb.errors import SettingError


class SparseConfig(SizedConfig):
    """What such methods have as options."""

    flops: float = Field(
        0.0, ge=0, description="weight of the FLOPs regulariser, which spreads values evenly over columns; 0: without"
    )
    bytes: int | None = Field(None, ge=1, description="what the serving form may take; absent: by the budget")

    @property
    def sized(self) -> bool:
        return self.bytes is not None


S = TypeVar("S", bound=SparseConfig)


class SparseBackend(ComposedBackend[S]):
    """A row for every id, of which ``sparse`` leaves some values in training.

    Outside training also the smallest go, one limit for all tables, until the rest fits the budget as sparse rows
    (:class:`CSR`): so evaluation sees what is served, and the best weights are the best within the budget. The limit is
    found when training gives way to evaluation, in two passes over all rows.

    With ``flops`` the loss gains that times the sum, over the columns of every table, of (mean |v|)^2 over the ids of a
    batch (Paria et al., "Minimizing FLOPs to Learn Efficient Sparse Representations", ICLR 2020, eq. 3).
    """

    default_ratio = 1.0
    cut: Tensor
    """float32 []: outside training, looked-up values of this ``strength`` or less are 0."""

    def __init__(self, spec: GroupSpec, config: S, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])
        self.table = own_table(spec.tables, spec.embedding_dim, device)
        self.register_buffer("cut", torch.zeros((), device=device))
        self._looked: tuple[Tensor, list[int]] | None = None

    def reset_parameters(self) -> None:
        self.cut.zero_()

    @abstractmethod
    def sparse(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """What is left of looked-up rows float [n, D], given their ids."""

    def strength(self, vectors: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """By what values are cut, those of looked-up ids, as ``vectors``: float [n, D]."""
        return vectors.abs()

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        vectors = self.sparse(self.table(self.rows_of(ids, counts)), ids, counts)
        if not self.training:
            return vectors * (self.strength(vectors, ids, counts) > self.cut)
        if isinstance(vectors, Tensor):  # not while it is traced
            self._looked = (vectors, list(counts)) if self.config.flops else None
        return vectors

    def aux_loss(self) -> Tensor | None:
        if self._looked is None:
            return None
        vectors, counts = self._looked
        summed = torch.stack([part.abs().sum(0) for part in vectors.split(counts)])  # [T, D]
        numbers = self.total(torch.tensor(counts, dtype=summed.dtype, device=summed.device))
        return self.config.flops * (self.total(summed) / numbers.clamp(min=1)[:, None]).square().sum()

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def checked(cls, spec: GroupSpec, config: S) -> S:
        least, most = least_bytes(spec), spec.full_bytes
        if config.bytes is not None and not least <= config.bytes <= most:
            raise SettingError("options.bytes", f"{config.bytes:,} bytes; allowed: {least:,} to {most:,}")
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: S, stats: Stats | None) -> S:
        return config.model_copy(update={"bytes": least_bytes(spec)})

    @classmethod
    def size(cls, spec: GroupSpec, config: S, budget: int, stats: Stats | None) -> S:
        return config.model_copy(update={"bytes": min(budget, spec.full_bytes)})

    @property
    def bytes(self) -> int:
        """What the serving form takes at most."""
        assert self.config.bytes is not None
        return self.config.bytes

    def storage(self) -> list[StorageItem]:
        return [StorageItem("planned", (self.bytes,), torch.uint8)]

    def describe(self) -> list[FieldReport]:
        return EmbeddingBackend.describe(self)

    # -- down to the budget -------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        ends = self.training and not mode
        super().train(mode)
        if ends and not self.cut.is_meta:
            self._fit_cut()
        return self

    @torch.no_grad()
    def _fit_cut(self) -> None:
        """Every process of several makes the passes, each over all rows."""
        self.cut.zero_()
        if self.bytes < self.spec.full_bytes:
            worth = Worth(self.spec, None, None)  # a value's own square
            bits, _, _ = threshold(
                self, lambda values, rows: sparse_bytes(self.spec, values, rows) <= self.bytes, worth
            )
            self.cut.copy_(torch.tensor(bits, dtype=torch.int32).view(torch.float32))

    @torch.no_grad()
    def search(self, score: Callable[[], float], seed: int) -> KeptValuesBackend:
        """The values that are left, to be trained alone; nothing is scored."""
        return KeptValuesBackend.chosen(self)

    @torch.no_grad()
    def compact(self) -> EmbeddingBackend[Any]:
        was_training = self.training
        self.eval()
        made = sparse_form(self, ((table, place, rows, rows != 0) for table, place, rows in all_rows(self)))
        self.train(was_training)
        return made


def least_bytes(spec: GroupSpec) -> int:
    """One value a table, in as many rows."""
    tables = len(spec.tables)
    return min(csr_bytes(spec.num_embeddings, spec.embedding_dim, tables, tables), spec.full_bytes)
