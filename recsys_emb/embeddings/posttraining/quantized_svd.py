"""Low-rank factors of every table, their rows in 4- or 8-bit codes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend, FieldReport, GroupSpec, Stats
from recsys_emb.embeddings.composed import project
from recsys_emb.embeddings.counts import split_ids
from recsys_emb.embeddings.posttraining._affine import AffineRows, quantise
from recsys_emb.embeddings.posttraining.base import PostTraining, register
from recsys_emb.embeddings.posttraining.int4 import Int4Rows
from recsys_emb.embeddings.posttraining.int8 import Int8Rows
from recsys_emb.embeddings.posttraining.svd import Weighting, spectrum, weights_of
from recsys_emb.errors import SettingError

_CODES: dict[int, type[AffineRows]] = {4: Int4Rows, 8: Int8Rows}


class QuantizedSVDConfig(Weighting):
    """Options of ``quantized_svd``."""

    bits: Literal[4, 8] = Field(4, description="of a code; 8 halves the rank that a budget pays for")
    rank: int | None = Field(None, ge=1, description="columns of a factor; absent: by the budget, without one all")


@register("quantized_svd")
class QuantizedSVD(PostTraining[QuantizedSVDConfig]):
    """X [N, D] as Q V^T: the rows of X V, V [D, r] as in ``svd``, in symmetric codes with a float16 scale each.

    Two savings that multiply: a rank that keeps nearly all of what is looked up, then codes in place of floats
    (Khudia et al., 2021; Guan et al., 2019). A table takes N (ceil(r b / 8) + 2) + 4 r D bytes, or stays in fp32 where
    that is no more. A budget buys the largest rank; the least is rank 1.
    """

    summary = "the best low-rank factors of each table, their rows in codes"
    Config = QuantizedSVDConfig

    def __init__(self, spec: GroupSpec, config: QuantizedSVDConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.rank is not None
        dim = spec.embedding_dim
        for t, table in enumerate(spec.tables):
            n = table.num_embeddings
            if _coded(n, config.rank, config.bits, dim):
                codes = torch.empty(n, _code_bytes(config.rank, config.bits), dtype=torch.uint8, device=device)
                self.register_buffer(f"codes_{t}", codes)
                self.register_buffer(f"scale_{t}", torch.empty(n, dtype=torch.float16, device=device))
                self.register_buffer(f"basis_{t}", torch.empty(config.rank, dim, device=device))
            else:
                self.register_buffer(f"rows_{t}", torch.empty(n, dim, device=device))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return torch.cat([self._table(t, part) for t, part in enumerate(split_ids(ids, counts))])

    def _table(self, t: int, ids: Tensor) -> Tensor:
        bits, rank = self.config.bits, self.config.rank
        assert rank is not None
        if not self._is_coded(t):
            return self.array(f"rows_{t}").index_select(0, ids)
        codes = _CODES[bits].unpack(self.array(f"codes_{t}").index_select(0, ids), rank)
        scale = self.array(f"scale_{t}").index_select(0, ids).float()[:, None]
        factor = (codes.float() - 2 ** (bits - 1)) * scale
        return project(factor, self.array(f"basis_{t}")[None], [ids.shape[0]])

    def _is_coded(self, t: int) -> bool:
        rank = self.config.rank
        assert rank is not None
        return _coded(self.spec.tables[t].num_embeddings, rank, self.config.bits, self.spec.embedding_dim)

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: QuantizedSVDConfig, stats: Stats | None = None) -> int:
        return _bytes(spec, _given_rank(spec, config) or 1, config.bits)

    @classmethod
    def fit(
        cls,
        trained: EmbeddingBackend[Any],
        config: QuantizedSVDConfig,
        budget: int | None = None,
        stats: Stats | None = None,
    ) -> Self:
        spec = trained.spec
        config = config.model_copy(update={"rank": _rank(spec, config, budget)})
        made = cls(spec, config, trained.device)
        for t in range(len(spec.tables)):
            made._take(trained, t, weights_of(spec, t, config, stats))
        return made

    @torch.no_grad()
    def _take(self, trained: EmbeddingBackend[Any], t: int, weights: Tensor | None) -> None:
        bits, rank, coded = self.config.bits, self.config.rank, self._is_coded(t)
        if coded:
            basis = spectrum(trained, t, weights)[1][:, :rank].to(trained.device)
            self.array(f"basis_{t}").copy_(basis.t())
        at = 0
        for rows in trained.rows(t):
            place = slice(at, at + len(rows))
            if coded:
                factor = (rows.double() @ basis).float()
                codes, scale, _ = quantise(factor, bits, symmetric=True, dtype=torch.float16)
                self.array(f"codes_{t}")[place] = _CODES[bits].pack(codes)
                self.array(f"scale_{t}")[place] = scale.half()
            else:
                self.array(f"rows_{t}")[place] = rows
            at += len(rows)

    def describe(self) -> list[FieldReport]:
        rank, dim = self.config.rank, self.spec.embedding_dim
        assert rank is not None
        lines = []
        for t, table in enumerate(self.spec.tables):
            n = table.num_embeddings
            width, form = (rank, self.name) if self._is_coded(t) else (dim, "full")
            lines.append(FieldReport(table.name, n, n, width, _table_bytes(n, rank, self.config.bits, dim), form))
        return lines


def _code_bytes(rank: int, bits: int) -> int:
    return -(-rank * bits // 8)


def _table_bytes(ids: int, rank: int, bits: int, dim: int) -> int:
    return min(ids * (_code_bytes(rank, bits) + 2) + 4 * rank * dim, 4 * ids * dim)


def _coded(ids: int, rank: int, bits: int, dim: int) -> bool:
    return _table_bytes(ids, rank, bits, dim) < 4 * ids * dim


def _bytes(spec: GroupSpec, rank: int, bits: int) -> int:
    return sum(_table_bytes(t.num_embeddings, rank, bits, spec.embedding_dim) for t in spec.tables)


def _given_rank(spec: GroupSpec, config: QuantizedSVDConfig) -> int | None:
    if config.rank is not None and config.rank > spec.embedding_dim:
        raise SettingError("options.rank", f"{config.rank}; allowed: 1 to {spec.embedding_dim}")
    return config.rank


def _rank(spec: GroupSpec, config: QuantizedSVDConfig, budget: int | None) -> int:
    """The given rank, or the largest within the budget, which pays for at least 1."""
    ranks = range(1, spec.embedding_dim + 1)
    given = _given_rank(spec, config)
    return given or max(r for r in ranks if budget is None or _bytes(spec, r, config.bits) <= budget)
