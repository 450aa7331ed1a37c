"""Metrics of CTR predictions: AUC, logloss, normalised entropy, calibration and AUC per user.

All are computed once over a whole split, never averaged over batches. Tensors are on the CPU, N predictions
throughout; sums are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recsys_emb.data.schema import OOV_ID
from recsys_emb.errors import UserError
from recsys_emb.training import delong
from recsys_emb.training.stored_predictions import StoredPredictions


class Predictions:
    """Collects the predictions of a split, batch by batch, in CPU memory (8 bytes a row, 16 with groups)."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Tensor]] = {"logits": [], "labels": [], "weights": [], "groups": []}

    def append(
        self, logits: Tensor, labels: Tensor, weights: Tensor | None = None, groups: Tensor | None = None
    ) -> None:
        """Adds one batch.

        Args:
            logits: float [B], log-odds of a click.
            labels: [B], 0 or 1.
            weights: float [B], given in every batch or in none.
            groups: int64 [B], whom GAUC groups by (users); given in every batch or in none.
        """
        batch = {"logits": logits.float(), "labels": labels.float()}
        if weights is not None:
            batch["weights"] = weights.float()
        if groups is not None:
            batch["groups"] = groups.long()
        for name, values in batch.items():
            if values.shape != logits.shape or values.dim() != 1:
                raise ValueError(f"{name}: expected the shape [B] of the logits, got {list(values.shape)}")
            # clone: a caller's buffer may hold the next batch by the time we read it
            self._columns[name].append(values.detach().to("cpu", copy=True))

    def __len__(self) -> int:
        return sum(len(batch) for batch in self._columns["logits"])

    @property
    def logits(self) -> Tensor:
        """float32 [N]."""
        return self._concatenated("logits", torch.float32)

    @property
    def labels(self) -> Tensor:
        """float32 [N]."""
        return self._concatenated("labels", torch.float32)

    @property
    def weights(self) -> Tensor | None:
        """float32 [N], or None when no batch had weights."""
        return self._concatenated("weights", torch.float32) if self._columns["weights"] else None

    @property
    def groups(self) -> Tensor | None:
        """int64 [N], or None when no batch had groups."""
        return self._concatenated("groups", torch.int64) if self._columns["groups"] else None

    def stored(self) -> StoredPredictions:
        """The same as a run's folder keeps it: whether a user is known, not who it is."""
        weights, groups = self.weights, self.groups
        return StoredPredictions(
            logits=self.logits.numpy(),
            labels=self.labels.to(torch.uint8).numpy(),
            weights=None if weights is None else weights.numpy(),
            known_user=None if groups is None else (groups != OOV_ID).numpy(),
        )

    def exchanged(self, gather: Callable[[Tensor], Tensor]) -> Predictions:
        """Every column as ``gather`` gives it: with the rows of other processes."""
        out = Predictions()
        for name, parts in self._columns.items():
            if parts:
                out._columns[name] = [gather(torch.cat(parts))]
        return out

    def placed(self, rows: Tensor) -> Predictions:
        """The same in the order of a split: ``rows``, int64 [N], says of which row of it each prediction is."""
        out = Predictions()
        for name, parts in self._columns.items():
            if parts:
                values = torch.cat(parts)
                out._columns[name] = [torch.empty_like(values).index_copy_(0, rows, values)]
        return out

    def _concatenated(self, name: str, dtype: torch.dtype) -> Tensor:
        parts = self._columns[name]
        if len(parts) > 1:
            parts[:] = [torch.cat(parts)]  # once: the next access finds a single part
        return parts[0] if parts else torch.empty(0, dtype=dtype)


def auc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting half.

    Exact. Any increasing function of the logits gives the same value, so scores may be logits or probabilities.

    Args:
        scores: float [N].
        labels: [N], 0 or 1.
        weights: float [N]; a pair weighs the product of its two weights.

    Raises:
        UserError: NaN or infinite scores, or labels of one class.
    """
    _check(scores, labels)
    positive = labels > 0.5
    if weights is None:
        positives, negatives = _sorted(scores[positive]), _sorted(scores[~positive])
        # sorted on both sides, so the binary searches run through memory in order
        wins = torch.searchsorted(negatives, positives)
        wins_and_ties = torch.searchsorted(negatives, positives, right=True)
        # int64: up to 9e18 half pairs, which 2 billion rows stay below
        return float(wins.sum() + wins_and_ties.sum()) / (2.0 * len(positives) * len(negatives))
    weights = weights.double()
    of_positive, of_negative = weights[positive], weights[~positive]
    if min(of_positive.sum(), of_negative.sum()) <= 0:
        raise UserError("AUC is undefined: all rows of one class have weight 0; check the weight column of the split")
    won = torch.from_numpy(delong.wins(scores.numpy(), labels.numpy(), weights.numpy()))
    return _mean(won[positive], of_positive)


def auc_stderr(predictions: Predictions) -> float:
    """The standard error of an AUC: how far another test set of the same kind would move it. See ``delong.py``."""
    weights = None if predictions.weights is None else predictions.weights.numpy()
    return delong.auc_with_error(predictions.logits.numpy(), predictions.labels.numpy(), weights)[1]


def auc_change(before: Predictions, after: Predictions) -> tuple[float, float]:
    """How AUC changes from one model to another on the same rows, and the standard error of that. See ``delong.py``."""
    weights = None if before.weights is None else before.weights.numpy()
    return delong.auc_change(before.logits.numpy(), after.logits.numpy(), before.labels.numpy(), weights)


def logloss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean binary cross-entropy in nats, of logits float [N] and labels [N]. UserError on NaN or infinite logits."""
    _check(logits, labels, both_classes=False)
    losses = F.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none")
    return _mean(losses, weights)


def normalized_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Logloss over the entropy of the base rate: 1 is no better than predicting the mean label, 0 is perfect.

    He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014, section 3, equation 1.
    UserError on labels of one class, whose entropy is 0.
    """
    _check(logits, labels)
    rate = torch.tensor(_mean(labels.double(), weights), dtype=torch.float64)
    entropy = -torch.xlogy(rate, rate) - torch.special.xlog1py(1 - rate, -rate)
    return logloss(logits, labels, weights) / float(entropy)


def calibration(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Mean predicted probability over mean label: above 1 the model predicts too many clicks.

    He et al. 2014, section 3. UserError on labels of one class.
    """
    _check(logits, labels)
    return _mean(logits.double().sigmoid(), weights) / _mean(labels.double(), weights)


class UserAUC(NamedTuple):
    """AUC within users, and what it covers.

    Attributes:
        value: the mean over the users that count; None without any.
        users, rows: how many count, those with clicks and non-clicks of a weight above 0; and how many rows are theirs.
        of_users: how many there are.
    """

    value: float | None
    users: int
    rows: int
    of_users: int


def gauc(scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None) -> UserAUC:
    """Mean of the users' own AUCs, weighted by impressions, over the users who have both classes.

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", 2018, section 6.1.

    Args:
        scores: float [N], compared as float32.
        labels: [N], 0 or 1.
        groups: int64 [N], each row's user.
        weights: float [N]; a pair weighs the product of its two weights, a user the sum of the rows'.
    """
    _check(scores, labels, both_classes=False)
    if int(groups.min()) < 0 or int(groups.max()) >= 2**30:
        groups = groups.unique(return_inverse=True)[1]
    # One sortable integer per row: user, then score, then label. Sorting values is several times faster than argsort.
    bits = (scores.float() + 0.0).view(torch.int32)  # + 0.0 turns -0 into 0
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() + 2**31  # floats compare like these integers
    rows = (groups << 33) | (ordered << 1) | (labels > 0.5)
    if weights is None:
        rows, mass = _sorted(rows), torch.ones(len(rows), dtype=torch.float64)  # sums are exact up to 2^53
    else:
        order = torch.from_numpy(np.argsort(rows.numpy()))
        rows, mass = rows[order], weights[order].double()
    positive = (rows & 1).bool()

    _, user, impressions = torch.unique_consecutive(rows >> 33, return_inverse=True, return_counts=True)
    _, tie, in_tie = torch.unique_consecutive(rows >> 1, return_inverse=True, return_counts=True)
    of_negative = mass.masked_fill(positive, 0)
    below = F.pad(of_negative.cumsum(0), (1, 0))  # weight of the negatives before each row, of all users

    def before(counts: Tensor) -> Tensor:
        """``below`` at the first row of each run of rows."""
        return below[counts.cumsum(0) - counts]

    def by_user(values: Tensor) -> Tensor:
        return torch.zeros(len(impressions), dtype=torch.float64).index_add_(0, user, values)

    tied = torch.zeros(len(in_tie), dtype=torch.float64).index_add_(0, tie, of_negative)
    won = (before(in_tie) + tied / 2)[tie] - before(impressions)[
        user
    ]  # weight of the user's negatives that a row beats
    p, n = by_user(mass - of_negative), by_user(of_negative)
    both = (p > 0) & (n > 0)
    p, n, wins = p[both], n[both], by_user((mass - of_negative) * won)[both]
    value = float((wins / (p * n) * (p + n)).sum() / (p + n).sum()) if len(p) else None
    return UserAUC(value, len(p), int(impressions[both].sum()), len(both))


def evaluate(predictions: Predictions) -> dict[str, float | None]:
    """All metrics of a split: ``auc``, ``logloss``, ``ne``, ``calibration`` and ``gauc``, and what they cover.

    ``auc_stderr`` is how far another split of the same kind would move the AUC.
    ``gauc`` is of ``gauc_rows`` of the ``rows``, of ``gauc_users`` of the ``users`` that have an id; all but ``rows``
    are None without groups.

    Raises:
        UserError: an empty split, a split of one class, or predictions that are NaN or infinite.
    """
    logits, labels, weights = predictions.logits, predictions.labels, predictions.weights
    return {
        "auc": auc(logits, labels, weights),
        "logloss": logloss(logits, labels, weights),
        "ne": normalized_entropy(logits, labels, weights),
        "calibration": calibration(logits, labels, weights),
        "auc_stderr": auc_stderr(predictions),
        **_gauc_of_known(predictions),
        "rows": len(logits),
    }


def _gauc_of_known(predictions: Predictions) -> dict[str, float | None]:
    """GAUC over users that have an id: those out of vocabulary are many users, not one."""
    groups, weights = predictions.groups, predictions.weights
    if groups is None:
        return dict.fromkeys(("gauc", "gauc_users", "gauc_rows", "users"))
    known = (groups != OOV_ID).nonzero().view(-1)
    found = UserAUC(None, 0, 0, 0)
    if len(known):
        weights = None if weights is None else weights[known]
        found = gauc(predictions.logits[known], predictions.labels[known], groups[known], weights)
    return {"gauc": found.value, "gauc_users": found.users, "gauc_rows": found.rows, "users": found.of_users}


def _sorted(values: Tensor) -> Tensor:
    return torch.from_numpy(np.sort(values.numpy()))  # vectorised, ten times faster than torch.sort


def _mean(values: Tensor, weights: Tensor | None) -> float:
    if weights is None:
        return float(values.mean())
    weights = weights.double()
    return float((values * weights).sum() / weights.sum())


def _check(scores: Tensor, labels: Tensor, both_classes: bool = True) -> None:
    if len(scores) == 0:
        raise UserError("no predictions to evaluate: the split has no rows; prepare the data with a larger split")
    bad = len(scores) - int(scores.isfinite().sum())
    if bad:
        raise UserError(
            f"{bad} of {len(scores)} predictions are NaN or infinite: training diverged; "
            "lower training.learning_rate or set training.max_grad_norm"
        )
    if both_classes:
        clicks = int((labels > 0.5).sum())
        if clicks in (0, len(labels)):
            raise UserError(
                f"AUC is undefined: all {len(labels)} labels of the split are {int(clicks > 0)}; "
                "prepare the data with a split that holds clicks and non-clicks"
            )
