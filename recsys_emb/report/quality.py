"""What stored predictions say beyond one figure: calibration by decile, and users that training knew or not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recsys_emb.training.delong import auc_with_error
from recsys_emb.training.stored_predictions import StoredPredictions


@dataclass(frozen=True)
class Bin:
    """Rows that were predicted alike.

    Attributes:
        rows: how many.
        predicted: mean probability of a click.
        clicked: share of clicks.
        error: standard error of ``clicked``.
    """

    rows: int
    predicted: float
    clicked: float
    error: float


def deciles(predictions: StoredPredictions, bins: int = 10) -> list[Bin]:
    """The rows in ``bins`` groups of equal size by rising prediction; fewer groups where there are fewer rows."""
    order = np.argsort(predictions.logits, kind="stable")
    probabilities = _sigmoid(predictions.logits)
    weights = np.ones(len(order)) if predictions.weights is None else predictions.weights.astype(np.float64)
    found = []
    for rows in np.array_split(order, min(bins, len(order))):
        w = weights[rows]
        if not w.sum():
            continue
        clicked = float(w @ predictions.labels[rows] / w.sum())
        error = float(np.sqrt(clicked * (1 - clicked) * np.square(w).sum()) / w.sum())
        found.append(Bin(len(rows), float(w @ probabilities[rows] / w.sum()), clicked, error))
    return found


@dataclass(frozen=True)
class Slice:
    """Figures of some of the rows.

    Attributes:
        rows: how many.
        click_rate, logloss: of these.
        auc, auc_stderr: None where all are clicks or none is.
    """

    rows: int
    click_rate: float
    logloss: float
    auc: float | None
    auc_stderr: float | None


def by_user(predictions: StoredPredictions) -> dict[str, Slice]:
    """Rows of users that training has seen, ``known``, and of others, ``unknown``; empty where rows have no users."""
    known = predictions.known_user
    if known is None:
        return {}
    return {name: _slice(predictions, rows) for name, rows in (("known", known), ("unknown", ~known)) if rows.any()}


def _slice(predictions: StoredPredictions, rows: NDArray[np.bool_]) -> Slice:
    logits, labels = predictions.logits[rows].astype(np.float64), predictions.labels[rows]
    weights = None if predictions.weights is None else predictions.weights[rows]
    losses = np.logaddexp(0, logits) - labels * logits
    auc = stderr = None
    if 0 < labels.sum() < len(labels):
        auc, stderr = auc_with_error(logits, labels, weights)
    mean = {name: float(np.average(values, weights=weights)) for name, values in (("c", labels), ("l", losses))}
    return Slice(int(rows.sum()), mean["c"], mean["l"], auc, stderr)


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
