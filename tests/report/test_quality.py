"""Calibration by decile and figures by user, from stored predictions."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from recsys_emb.report import plots
from recsys_emb.report.quality import by_user, deciles
from recsys_emb.training.stored_predictions import StoredPredictions

RNG = np.random.default_rng(11)
LOGITS = RNG.normal(-1, 1.5, 1000).astype(np.float32)
LABELS = (RNG.random(1000) < 0.3).astype(np.uint8)


def test_deciles_are_scikit_learns() -> None:
    bins = deciles(StoredPredictions(LOGITS, LABELS))
    clicked, predicted = calibration_curve(LABELS, 1 / (1 + np.exp(-LOGITS)), n_bins=10, strategy="quantile")
    assert [b.rows for b in bins] == [100] * 10
    np.testing.assert_allclose([b.clicked for b in bins], clicked, atol=1e-12)
    np.testing.assert_allclose([b.predicted for b in bins], predicted, rtol=1e-6)
    np.testing.assert_allclose([b.error for b in bins], np.sqrt(clicked * (1 - clicked) / 100))


def test_a_row_of_weight_two_counts_as_two() -> None:
    logits, labels = np.float32([-1, 0, 1, 2]), np.uint8([0, 1, 0, 1])
    (weighted,) = deciles(StoredPredictions(logits, labels, weights=np.float32([1, 1, 2, 1])), bins=1)
    (twice,) = deciles(StoredPredictions(logits[[0, 1, 2, 2, 3]], labels[[0, 1, 2, 2, 3]]), bins=1)
    assert weighted.clicked == twice.clicked == pytest.approx(0.4)
    assert weighted.predicted == pytest.approx(twice.predicted)
    assert weighted.error > twice.error  # the two are not independent


def test_few_rows_are_few_bins() -> None:
    assert [b.rows for b in deciles(StoredPredictions(LOGITS[:3], LABELS[:3]))] == [1, 1, 1]


def test_users_are_known_unknown_or_not_there() -> None:
    assert by_user(StoredPredictions(LOGITS, LABELS)) == {}
    all_known = by_user(StoredPredictions(LOGITS, LABELS, known_user=np.ones(1000, bool)))
    assert list(all_known) == ["known"]
    one_class = by_user(StoredPredictions(LOGITS, LABELS, known_user=LABELS == 1))
    assert (one_class["unknown"].auc, one_class["unknown"].click_rate) == (None, 0.0)


def test_the_plot_shows_the_bins() -> None:
    bins = deciles(StoredPredictions(LOGITS, LABELS))
    points = plots.calibration(bins).containers[0].lines[0].get_xydata()
    np.testing.assert_allclose(points, [(b.predicted, b.clicked) for b in bins])
