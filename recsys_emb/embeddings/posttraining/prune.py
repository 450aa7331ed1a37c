"""Magnitude pruning of a trained table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, FieldReport, GroupSpec, Stats
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.posttraining._csr import CSR, fit_csr
from recsys_emb.embeddings.posttraining._rows_columns import RowsColumns, fit_rows_columns
from recsys_emb.embeddings.posttraining.base import PostTraining, register
from recsys_emb.errors import UserError

DEFAULT_RATIO = 0.25


class PruneConfig(BackendConfig):
    """Options of ``prune``."""

    structure: Literal["elements", "rows_columns"] = Field(
        "elements",
        description="elements: single values, each with its column, best above about a tenth of the full tables; "
        "rows_columns: whole rows and whole columns of a table, nearly no indices, for less than that",
    )
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="share of values dropped (elements only); absent: by the budget"
    )
    kept: tuple[int, ...] | None = Field(None, description="values, or rows, kept of each table; found by fitting")
    widths: tuple[int, ...] | None = Field(None, description="columns kept of each table; found by fitting")


@register("prune")
class Pruned(PostTraining[PruneConfig]):
    """The values of least magnitude become 0 and are not stored, one threshold for the whole group.

    Bytes by structure are in ``_csr.py`` and ``_rows_columns.py``; indices count. Without a budget and a sparsity: a
    quarter of the full tables.
    """

    summary = "values, or rows and columns, of least magnitude are dropped"
    Config = PruneConfig
    fitted = ("kept", "widths")

    def __init__(self, spec: GroupSpec, config: PruneConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.kept is not None
        sizes = [t.num_embeddings for t in spec.tables]
        self.rows_of = OwnRows(sizes)
        self.stored: CSR | RowsColumns
        if config.structure == "elements":
            self.stored = CSR(sizes, spec.embedding_dim, config.kept, device)
        else:
            assert config.widths is not None
            self.stored = RowsColumns(sizes, spec.embedding_dim, config.kept, config.widths, device)
        self.tables = torch.arange(len(sizes))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return self.stored(self.rows_of(ids, counts), per_id(self.tables, counts, ids))

    @classmethod
    def fit(
        cls,
        trained: EmbeddingBackend[Any],
        config: PruneConfig,
        budget: int | None = None,
        stats: Stats | None = None,
    ) -> Self:
        spec = trained.spec
        if config.structure == "rows_columns":
            if config.sparsity is not None:
                raise UserError("embedding.options.sparsity: only for structure elements; give a budget")
            kept, widths, arrays = fit_rows_columns(trained, _bytes(spec, budget))
        else:
            values = spec.num_embeddings * spec.embedding_dim
            if config.sparsity is not None and budget is not None:
                raise UserError("embedding.options.sparsity: a budget decides it already; give one of the two")
            wanted = None if config.sparsity is None else values - round(config.sparsity * values)
            limit = None if wanted is not None else _bytes(spec, budget)
            kept, arrays = fit_csr(trained, limit, wanted, cls.name)
            widths = None
        sized = config.model_copy(update={"kept": kept, "widths": widths})
        return cls.filled(spec, sized, {f"stored.{name}": array for name, array in arrays.items()})

    def describe(self) -> list[FieldReport]:
        dim, sizes = self.spec.embedding_dim, [(t.name, t.num_embeddings) for t in self.spec.tables]
        lines = [
            FieldReport(name, n, rows, width, size, f"pruned {self.config.structure}")
            for (name, n), (rows, width, size) in zip(sizes, self.stored.per_table())
        ]
        rest = self.serving_bytes() - sum(line.bytes for line in lines)
        shared = [FieldReport("(shared)", self.spec.num_embeddings, 0, dim, rest, "row pointers")] if rest else []
        return [*lines, *shared]


def _bytes(spec: GroupSpec, budget: int | None) -> int:
    return budget if budget is not None else int(DEFAULT_RATIO * spec.full_bytes)
