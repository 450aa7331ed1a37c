"""Truncated singular value decomposition of every table."""

from __future__ import annotations

import heapq
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.backends.low_rank import LowRankBackend, LowRankConfig
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, Stats
from recsys_emb.embeddings.composed import Project, projected_floats, useful_width
from recsys_emb.embeddings.posttraining.base import PostTraining, register
from recsys_emb.errors import SettingError


class Weighting(BackendConfig):
    """Which rows a truncated basis fits best."""

    weighting: Literal["auto", "counts", "none"] = Field(
        "auto",
        description="counts: errors count as often as an id occurs in training, so the frequent rows are kept best; "
        "none: all rows alike; auto: counts where they are known; no effect on size",
    )


class SVDConfig(Weighting, LowRankConfig):
    """Options of ``svd``."""


@register("svd")
class SVDBackend(LowRankBackend, PostTraining[LowRankConfig]):
    """The best rank-r factors of each table X [N, D]: X V_r and V_r^T, 4 r (N + D) bytes (Eckart and Young, 1936).

    V are the eigenvectors of X^T C X, with C the ids' counts, or 1: minimising sum_i c_i |x_i - x'_i|^2 fits what is
    looked up rather than what is stored, as Yu et al. do ("Unified Low-rank Compression Framework for Click-through
    Rate Prediction", KDD 2024, section 3). X^T C X is summed in float64 while the rows pass by, so memory holds one
    chunk. Given bytes, ranks grow where a byte saves the most of that error; the least is rank 1. Without a budget: a
    quarter of the full tables.
    """

    summary = "the best low-rank factors of each table"
    Config = SVDConfig

    @classmethod
    def fit(  # type: ignore[override]
        cls, trained: EmbeddingBackend[Any], config: SVDConfig, budget: int | None = None, stats: Stats | None = None
    ) -> Self:
        spec = trained.spec
        cls.checked(spec, config)
        values, vectors = zip(
            *(spectrum(trained, t, weights_of(spec, t, config, stats)) for t in range(len(spec.tables)))
        )
        if config.ranks is None:
            room = cls.default_bytes(spec, config, stats) if budget is None else budget
            config = config.model_copy(update={"ranks": tuple(allocate(spec, values, room // 4))})
        made = cls(spec, cls.plan(spec, config, budget), trained.device)  # type: ignore[arg-type]
        made._take(trained, vectors)
        return made

    @torch.no_grad()
    def _take(self, trained: EmbeddingBackend[Any], vectors: tuple[Tensor, ...]) -> None:
        for part in self._parts():
            assert part.rows is not None
            for j, (table, place) in enumerate(zip(part.tables, part.table.weight.split(list(part.rows)))):
                at, width = 0, place.shape[1]
                basis = vectors[table][:, :width].to(place.device)
                projected = isinstance(part.combine, Project)
                for rows in trained.rows(table):
                    place[at : at + len(rows)] = rows.double() @ basis if projected else rows
                    at += len(rows)
                if isinstance(part.combine, Project):
                    part.combine.weight[j] = basis.t()


def weights_of(spec: GroupSpec, table: int, config: Weighting, stats: Stats | None) -> Tensor | None:
    """float64 [N] weights of the rows, or None for equal ones; a row that training never saw weighs 1."""
    name = spec.tables[table].name
    known = stats is not None and name in stats
    if config.weighting == "none" or (config.weighting == "auto" and not known):
        return None
    if stats is None or not known:
        raise SettingError("options.weighting", f"counts is impossible, {name!r} has no counts; use none")
    return torch.from_numpy(stats[name].clip(min=1)).double()


def spectrum(trained: EmbeddingBackend[Any], table: int, counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Eigenvalues float64 [D], falling, and eigenvectors [D, D] of X^T C X."""
    dim = trained.spec.embedding_dim
    gram, at = torch.zeros(dim, dim, dtype=torch.float64), 0
    for rows in trained.rows(table):
        x = rows.double().cpu()
        weighted = x if counts is None else x * counts[at : at + len(x), None]
        gram += x.t() @ weighted
        at += len(x)
    values, vectors = torch.linalg.eigh(gram)
    return values.flip(0).clamp(min=0), vectors.flip(1)


def allocate(spec: GroupSpec, energies: tuple[Tensor, ...], floats: int) -> list[int]:
    """Ranks of at most ``floats`` floats, raised one by one where a float gains the most of ``energies`` [D] each."""
    dim = spec.embedding_dim
    sizes = [t.num_embeddings for t in spec.tables]
    ranks = [useful_width(n, 1, dim) for n in sizes]
    left = floats - sum(projected_floats(n, r, dim) for n, r in zip(sizes, ranks))

    def step(table: int) -> tuple[float, int, int, int]:
        rank = ranks[table]
        wider = useful_width(sizes[table], rank + 1, dim)
        cost = projected_floats(sizes[table], wider, dim) - projected_floats(sizes[table], rank, dim)
        return -float(energies[table][rank:wider].sum()) / max(cost, 1), table, wider, cost

    steps = [step(t) for t, r in enumerate(ranks) if r < dim]
    heapq.heapify(steps)
    while steps:
        _, table, wider, cost = heapq.heappop(steps)
        if cost <= left:
            ranks[table], left = wider, left - cost
            if wider < dim:
                heapq.heappush(steps, step(table))
    return ranks
