"""DeepLight: the smallest values are pruned again and again while the rest is trained."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.backends._sparse_rows import SparseBackend, SparseConfig
from recsys_emb.embeddings.backends.kept_values import sparse_bytes
from recsys_emb.embeddings.base import BackendConfig, GroupSpec, register
from recsys_emb.embeddings.stages import Compact, Stage, Train
from recsys_emb.embeddings.tables import EmbeddingTable

DEFAULT_SPARSITY = 0.9


class DeepLightConfig(SparseConfig):
    """Options of ``deeplight``."""

    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description=f"S, share of values that are 0 in the end; absent: by the budget, or {DEFAULT_SPARSITY}",
    )
    damping: float = Field(0.99, gt=0, lt=1, description="d of the schedule; higher: pruned later")
    unit: float = Field(10.0, gt=0, description="u, steps in which what is left to prune falls by d; the paper: 100")
    every: int = Field(50, ge=1, description="steps between two prunings, each a walk over the tables; fewer: slower")


@register("deeplight")
class DeepLightBackend(SparseBackend[DeepLightConfig]):
    """DeepLight's structural pruning of embeddings (Deng et al., "DeepLight: Deep Lightweight Feature Interactions for
    Accelerating CTR Predictions in Ad Serving", WSDM 2021, section 4.2 and algorithm 1).

    After step k the smallest values of all tables together, the share S (1 - d^(k/u)), become 0. They may grow again
    until the next pruning. A pruning, all ``every`` steps, walks over the tables three times, in chunks; in between a
    step costs what the batch costs. Rows that batches have skipped count as they were last stored. Where the schedule
    ends before S, evaluation and serving cut the rest (:class:`SparseBackend`).

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> collection = make_embedding_bag_collection([table], "deeplight", budget=0.1)
        >>> collection.compact().serving_bytes() <= collection.serving_bytes() == 64000
        True
    """

    summary = "the smallest values are pruned on a schedule while the rest is trained"

    Config = DeepLightConfig

    def __init__(self, spec: GroupSpec, config: DeepLightConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.sparsity = _sparsity_of(spec, self.bytes) if config.sparsity is None else config.sparsity

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        return Train(), Compact()

    def sparse(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return rows

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        config, steps = self.config, step + 1
        if steps % config.every:
            return
        density = 1 - self.sparsity * (1 - config.damping ** (steps / config.unit))
        limit = limit_of(self.table, int(density * self.table.num_rows * self.spec.embedding_dim))
        for bits, rows in magnitudes(self.table):
            rows.masked_fill_(bits <= limit, 0)


def _sparsity_of(spec: GroupSpec, budget: int) -> float:
    """The share of values that sparse rows within the budget leave out, if every value lay in another row."""
    if budget >= spec.full_bytes:
        return DEFAULT_SPARSITY
    ids, most = spec.num_embeddings, spec.num_embeddings * spec.embedding_dim
    values = bisect_left(range(most), True, key=lambda k: sparse_bytes(spec, k + 1, min(ids, k + 1)) > budget)
    return 1 - values / most


def magnitudes(table: EmbeddingTable, chunk: int = 1 << 18) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's rows in chunks: the bits of their magnitudes, which rise with them, and the rows, a view."""
    for rows in table.weight.detach().split(chunk):
        yield rows.abs().view(torch.int32), rows


def limit_of(table: EmbeddingTable, keep: int) -> int:
    """The bits of the least magnitude above which no more than ``keep`` values of the whole table lie.

    As in ``posttraining/_csr.py`` the upper 16 bits are counted first, then the lower ones of those at the limit.
    """
    high = [torch.bincount(bits.flatten() >> 16, minlength=1 << 15) for bits, _ in magnitudes(table)]
    prefix, above = _first(table.total(torch.stack(high).sum(0)).tolist(), keep)
    low = [torch.bincount(b[b >> 16 == prefix] & 0xFFFF, minlength=1 << 16) for b, _ in magnitudes(table)]
    suffix, _ = _first(table.total(torch.stack(low).sum(0)).tolist(), keep - above)
    return prefix << 16 | suffix


def _first(histogram: list[int], keep: int) -> tuple[int, int]:
    """The lowest bin above which no more than ``keep`` are, and how many are above it."""
    above = 0
    for number in range(len(histogram) - 1, 0, -1):
        if above + histogram[number] > keep:
            return number, above
        above += histogram[number]
    return 0, above
