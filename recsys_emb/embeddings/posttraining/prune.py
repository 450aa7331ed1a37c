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
from recsys_emb.embeddings.posttraining._csr import CSR, csr_bytes, fit_csr, stored_rows
from recsys_emb.embeddings.posttraining._rows_columns import (
    RowsColumns,
    Strengths,
    fit_rows_columns,
    row_column_strengths,
)
from recsys_emb.embeddings.posttraining._worth import Worth
from recsys_emb.embeddings.posttraining.base import PostTraining, Sensitivity, register
from recsys_emb.errors import SettingError

DEFAULT_RATIO = 0.25
COLUMN_FACTORS = (1.0, 1.4, 2.0)


class PruneConfig(BackendConfig):
    """Options of ``prune``."""

    structure: Literal["auto", "elements", "rows_columns"] = Field(
        "auto",
        description="elements: single values, each with its column; rows_columns: whole rows and whole columns of a "
        "table, nearly no indices, often better below a tenth of the full tables; auto: the better of the two, slower",
    )
    sparsity: float | None = Field(
        None, ge=0, lt=1, description="share of values dropped (elements only); absent: by the budget"
    )
    weighting: Literal["auto", "none"] = Field(
        "auto",
        description="auto: a value is worth what the model would lose with it, where that is known; none: its square",
    )
    column_factor: float | None = Field(
        None,
        gt=0,
        description="rows_columns: a column goes below so many times the limit of a row; higher: more rows, fewer "
        f"columns; absent: the best of {', '.join(f'{f:g}' for f in COLUMN_FACTORS)}",
    )
    rows: tuple[int, ...] | None = Field(None, description="rows stored of each table; found by fitting")
    values: tuple[int, ...] | None = Field(None, description="elements: values of each table; found by fitting")
    widths: tuple[int, ...] | None = Field(None, description="rows_columns: columns of each table; found by fitting")


@register("prune")
class Pruned(PostTraining[PruneConfig]):
    """The values that are worth least become 0 and are not stored, one threshold for the whole group.

    A value is worth what the loss rises when it goes, where that is known (``_worth.py``), else its square. Bytes by
    structure are in ``_csr.py`` and ``_rows_columns.py``; indices count. Without a budget and a sparsity: a quarter of
    the full tables. Of several forms the one whose errors cost least is taken.
    """

    summary = "values, or rows and columns, that are worth least are dropped"
    Config = PruneConfig
    fitted = ("rows", "values", "widths")
    uses_sensitivity = True

    def __init__(self, spec: GroupSpec, config: PruneConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.rows is not None
        sizes = [t.num_embeddings for t in spec.tables]
        self.rows_of = OwnRows(sizes)
        self.stored: CSR | RowsColumns
        if config.values is not None:
            self.stored = CSR(sizes, spec.embedding_dim, config.rows, config.values, device)
        else:
            assert config.widths is not None
            self.stored = RowsColumns(sizes, spec.embedding_dim, config.rows, config.widths, device)
        self.tables = torch.arange(len(sizes))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return self.stored(self.rows_of(ids, counts), per_id(self.tables, counts, ids))

    @classmethod
    def min_bytes(cls, spec: GroupSpec, config: PruneConfig, stats: Stats | None = None) -> int:
        return 0  # nothing is kept

    @classmethod
    def fit(
        cls,
        trained: EmbeddingBackend[Any],
        config: PruneConfig,
        budget: int | None = None,
        stats: Stats | None = None,
        sensitivity: Sensitivity | None = None,
    ) -> Self:
        worth = Worth(trained.spec, stats, sensitivity if config.weighting == "auto" else None)
        if config.sparsity is not None:
            if config.structure == "rows_columns":
                raise SettingError("options.sparsity", "only for structure elements; give a budget")
            if budget is not None:
                raise SettingError("options.sparsity", "a budget decides it already; give one of the two")
            return cls._elements(trained, config, None, worth)
        limit = budget if budget is not None else int(DEFAULT_RATIO * trained.spec.full_bytes)
        forms = []
        if config.structure != "rows_columns":
            forms.append(cls._elements(trained, config, limit, worth))
        if config.structure != "elements":
            strengths = row_column_strengths(trained, worth)
            factors = COLUMN_FACTORS if config.column_factor is None else (config.column_factor,)
            forms += [cls._rows_columns(trained, config, limit, strengths, factor) for factor in factors]
        return forms[0] if len(forms) == 1 else min(forms, key=lambda form: worth.cost(trained, form))

    @classmethod
    def _elements(cls, trained: EmbeddingBackend[Any], config: PruneConfig, budget: int | None, worth: Worth) -> Self:
        ids, dim = trained.spec.num_embeddings, trained.spec.embedding_dim
        most = ids * dim if config.sparsity is None else ids * dim - round(config.sparsity * ids * dim)

        def fits(values: int, rows: int) -> bool:
            if budget is None:
                return values <= most
            return csr_bytes(ids, dim, stored_rows(ids, dim, rows, values), values) <= budget

        kept, values, arrays = fit_csr(trained, fits, worth)
        return cls._filled(trained, config.model_copy(update={"rows": kept, "values": values}), arrays)

    @classmethod
    def _rows_columns(
        cls, trained: EmbeddingBackend[Any], config: PruneConfig, budget: int, strengths: Strengths, factor: float
    ) -> Self:
        kept, widths, arrays = fit_rows_columns(trained, budget, strengths, factor)
        found = {"rows": kept, "widths": widths, "column_factor": factor}
        return cls._filled(trained, config.model_copy(update=found), arrays)

    @classmethod
    def _filled(cls, trained: EmbeddingBackend[Any], config: PruneConfig, arrays: dict[str, Tensor]) -> Self:
        return cls.filled(trained.spec, config, {f"stored.{name}": array for name, array in arrays.items()})

    def describe(self) -> list[FieldReport]:
        dim, sizes = self.spec.embedding_dim, [(t.name, t.num_embeddings) for t in self.spec.tables]
        form = "pruned rows_columns" if self.config.values is None else "pruned elements"
        lines = [
            FieldReport(name, n, rows, width, size, form)
            for (name, n), (rows, width, size) in zip(sizes, self.stored.per_table())
        ]
        rest = self.serving_bytes() - sum(line.bytes for line in lines)
        shared = [FieldReport("(shared)", self.spec.num_embeddings, 0, dim, rest, "row index")] if rest else []
        return [*lines, *shared]
