"""How sure an AUC is, and the difference of the AUCs of two models on the same rows.

DeLong et al., "Comparing the Areas under Two or More Correlated Receiver Operating Characteristic Curves", Biometrics
44, 1988, for one or two curves and many rows (dividing by n, not n - 1). Numpy alone, so that reports need no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def auc_stderr(scores: Array, labels: Array, weights: Array | None = None) -> float:
    """The standard error of an AUC: how far other rows of the same kind would move it.

    Args:
        scores: float [N].
        labels: [N], 0 or 1, both there.
        weights: float [N].
    """
    return _mean_and_error(labels, weights, lambda own, w, sign: _wins(scores, own, w, sign))[1]


def auc_change(before: Array, after: Array, labels: Array, weights: Array | None = None) -> tuple[float, float]:
    """How AUC changes from one model's scores [N] to another's, and the standard error of that.

    The error is of the difference, far below that of either AUC where the models agree on most pairs.
    """
    return _mean_and_error(
        labels, weights, lambda own, w, sign: _wins(after, own, w, sign) - _wins(before, own, w, sign)
    )


def share_below(scores: Array, others: Array, weights: Array) -> Array:
    """Weighted share of ``others`` below each of ``scores``, ties counting half. float64 [len(scores)]."""
    order, asked = np.argsort(others), np.argsort(scores)  # both sorted, so that the searches run through memory
    others = others[order]
    mass = np.concatenate([[0.0], np.cumsum(weights[order], dtype=np.float64)])
    share = np.empty(len(scores))
    share[asked] = sum(mass[np.searchsorted(others, scores[asked], side)] for side in ("left", "right")) / 2
    return share / mass[-1]


def _mean_and_error(
    labels: Array, weights: Array | None, wins: Callable[[NDArray[np.bool_], Array, int], Array]
) -> tuple[float, float]:
    """The weighted mean of what each row wins, the same for both classes, and its standard error."""
    w = np.ones(len(labels)) if weights is None else weights.astype(np.float64)
    positive = labels > 0.5
    mean, variance = 0.0, 0.0
    for own, sign in ((positive, 1), (~positive, -1)):
        won, mine = wins(own, w, sign), w[own]
        mean = float((mine * won).sum() / mine.sum())
        variance += float(np.square(mine * (won - mean)).sum() / mine.sum() ** 2)
    return mean, math.sqrt(variance)


def _wins(scores: Array, own: NDArray[np.bool_], weights: Array, sign: int) -> Array:
    """Of each row of one class, the weighted share of the other class's rows that it is on the right side of."""
    return share_below(sign * scores[own], sign * scores[~own], weights[~own])
