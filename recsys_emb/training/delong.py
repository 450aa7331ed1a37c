"""How sure an AUC is, and the difference of the AUCs of two models on the same rows.

DeLong et al., "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves", Biometrics
44, 1988, for one or two curves and many rows (dividing by n, not n - 1). Numpy alone, so that reports need no torch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def auc_with_error(scores: Array, labels: Array, weights: Array | None = None) -> tuple[float, float]:
    """The area under the ROC curve, and its standard error: how far other rows of the same kind would move it.

    Args:
        scores: float [N].
        labels: [N], 0 or 1, both there.
        weights: float [N].
    """
    return _mean_and_error(wins(scores, labels, weights), labels, weights)


def auc_change(before: Array, after: Array, labels: Array, weights: Array | None = None) -> tuple[float, float]:
    """How AUC changes from one model's scores [N] to another's, and the standard error of that.

    The error is of the difference, far below that of either AUC where the models agree on most pairs.
    """
    moved = wins(after, labels, weights) - wins(before, labels, weights)
    return _mean_and_error(moved, labels, weights)


def wins(scores: Array, labels: Array, weights: Array | None = None) -> Array:
    """For each row, the weighted share of the other class's rows that it is on the right side of, ties counting half.

    The mean over either class is the AUC.

    Returns:
        float64 [N].
    """
    order = np.argsort(scores)
    scores, clicked = scores[order], labels[order] > 0.5
    w = np.ones(len(scores)) if weights is None else weights[order].astype(np.float64)
    first = np.flatnonzero(np.concatenate([[True], scores[1:] != scores[:-1]]))  # of each run of equal scores
    in_run = np.diff(first, append=len(scores))
    share = np.empty(len(scores))
    for others, mine in ((~clicked, clicked), (clicked, ~clicked)):
        mass = np.concatenate([[0.0], np.cumsum(w * others)])
        below = (mass[first] + mass[first + in_run]) / (2 * mass[-1])
        share[mine] = np.repeat(below, in_run)[mine]
    share[~clicked] = 1 - share[~clicked]  # a row without a click should have clicks above it
    unsorted = np.empty_like(share)
    unsorted[order] = share
    return unsorted


def _mean_and_error(won: Array, labels: Array, weights: Array | None) -> tuple[float, float]:
    """The weighted mean of what rows win, the same in both classes, and its standard error."""
    mean, variance = 0.0, 0.0
    for own in (labels > 0.5, labels <= 0.5):
        w = np.ones(int(own.sum())) if weights is None else weights[own].astype(np.float64)
        mean = float((w * won[own]).sum() / w.sum())
        variance += float(np.square(w * (won[own] - mean)).sum() / w.sum() ** 2)
    return mean, math.sqrt(variance)
