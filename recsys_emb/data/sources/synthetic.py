"""Made-up click data shaped like Criteo's, with known click probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field, model_validator

from recsys_emb.data.schema import CategoricalField
from recsys_emb.data.sources._fields import Ratios
from recsys_emb.data.sources._planted import CHUNK_ROWS, PlantedModel, PlantedRows
from recsys_emb.data.sources._splits import OrderSplit, RandomSplit
from recsys_emb.data.sources.base import Block, DenseColumn, RawFields, Source, SourceOptions, register
from recsys_emb.data.store import SPLITS

EXACT_ROWS = 4_000_000
"""Up to so many rows of all splits together the Bayes AUC is computed from every probability."""

_BINS = 1 << 20
_BIN_RANGE = 16.0


class SyntheticOptions(SourceOptions):
    """Options of ``synthetic``."""

    rows: int = Field(1_000_000, ge=1)
    ids: int = Field(100_000, ge=100, description="ids of the 26 categorical fields together")
    seed: int = Field(1, ge=0, lt=2**63, description="names the planted model, the rows and the split")
    zipf: float = Field(1.1, ge=0, le=3, description="exponent of the ids' frequencies; 0: all alike")
    dense: int = Field(13, ge=0, le=100, description="numeric fields")
    missing: float = Field(0.05, ge=0, lt=1, description="share of missing values in every field")
    signal_fields: int | None = Field(
        None, ge=0, le=26, description="so many categorical fields, from C1 on, act on the click; absent: all"
    )
    split: Literal["random", "consecutive"] = Field("random", description="by row at random, or in row order")
    ratios: Ratios = Field((0.8, 0.1, 0.1), description="relative sizes of train, valid and test")

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if self.signal_fields == 0 and self.dense == 0:
            raise ValueError("signal_fields and dense are both 0, so nothing would act on the click")
        return self


@register("synthetic")
class Synthetic(Source):
    """Rows of a ``PlantedModel``: 26 categorical fields C1..C26 of Zipf ids, numeric fields I1..I13, known Bayes AUC.

    Fields matter less from C1 to C26. Every row is a function of the seed and its number, so the data are never held.
    """

    summary = "Criteo-like rows from a planted model with known Bayes AUC; options rows, ids, seed; no input"
    Options = SyntheticOptions
    needs_input = False
    options: SyntheticOptions
    _scores: Sequence[TrueScore] = ()

    def fields(self) -> RawFields:
        return RawFields(
            dense=tuple(DenseColumn(f"I{j + 1}", "log1p") for j in range(self.options.dense)),
            categorical=tuple(CategoricalField(name=f"C{f + 1}", vocabulary=f"C{f + 1}") for f in range(26)),
        )

    def blocks(self) -> Iterator[Block]:
        o = self.options
        model = PlantedModel(o.seed, o.ids, o.zipf, o.dense, o.missing, o.signal_fields)
        splits = RandomSplit(o.ratios, o.seed) if o.split == "random" else OrderSplit(o.rows, o.ratios)
        scores = [TrueScore(exact=o.rows <= EXACT_ROWS) for _ in SPLITS]
        for start in range(0, o.rows, CHUNK_ROWS):
            stop = min(start + CHUNK_ROWS, o.rows)
            rows = model.rows(start, stop)
            split = splits.codes(stop - start)
            for code, score in enumerate(scores):
                score.add(rows.logit[split == code], rows.labels[split == code])
            yield Block(_frame(rows), rows.labels, split)
        self._scores = scores

    def bayes(self) -> dict[str, Any]:
        """``auc``, ``logloss`` (exact) and ``auc_error``, the most that ``auc`` can be off: 0 up to EXACT_ROWS rows."""
        return {name: result for name, score in zip(SPLITS, self._scores) if (result := score.result()) is not None}


class TrueScore:
    """AUC and logloss of true logits on their labels, added up block by block.

    Args:
        exact: keep every logit (5 bytes a row) and rank them; else count them in 2^20 bins.
    """

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._kept: list[tuple[np.ndarray, np.ndarray]] = []
        self._bins = np.zeros((2, _BINS), dtype=np.int64)
        self._loss = 0.0
        self._rows = 0

    def add(self, logit: np.ndarray, labels: np.ndarray) -> None:
        """Rows with ``logit`` float32 [n] and ``labels`` uint8 [n]."""
        wide = logit.astype(np.float64)
        self._loss += float(np.logaddexp(0.0, np.where(labels == 1, -wide, wide)).sum())
        self._rows += len(logit)
        if self._exact:
            self._kept.append((logit, labels))
            return
        position = np.clip((wide + _BIN_RANGE) * (_BINS / (2 * _BIN_RANGE)), 0, _BINS - 1).astype(np.int64)
        for label in (0, 1):
            self._bins[label] += np.bincount(position[labels == label], minlength=_BINS)

    def result(self) -> dict[str, float] | None:
        """The figures; None when a class is absent."""
        negatives, positives = self._bins
        if self._exact and self._kept:
            logit, labels = (np.concatenate(parts) for parts in zip(*self._kept))
            _, group = np.unique(logit, return_inverse=True)
            negatives, positives = (np.bincount(group[labels == label], minlength=group.max() + 1) for label in (0, 1))
        pairs = float(negatives.sum()) * float(positives.sum())
        if not pairs:
            return None
        tied = float((negatives.astype(np.float64) * positives).sum()) / 2
        below = (np.cumsum(negatives) - negatives).astype(np.float64)
        auc = (float((below * positives).sum()) + tied) / pairs
        return {"auc": auc, "logloss": self._loss / self._rows, "auc_error": 0.0 if self._exact else tied / pairs}


def _frame(rows: PlantedRows) -> pl.DataFrame:
    columns = {f"C{f + 1}": pa.array(ids, mask=ids < 0) for f, ids in enumerate(rows.ids)}
    columns |= {f"I{j + 1}": pa.array(values, mask=np.isnan(values)) for j, values in enumerate(rows.dense)}
    frame = pl.from_arrow(pa.table(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame
