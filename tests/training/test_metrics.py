"""Metrics against scikit-learn, per-user loops and cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recsys_emb.errors import UserError
from recsys_emb.training.metrics import (
    Predictions,
    UserAUC,
    auc,
    auc_change,
    auc_stderr,
    calibration,
    evaluate,
    gauc,
    logloss,
    normalized_entropy,
)

METRICS = ["auc", "logloss", "ne", "calibration", "auc_stderr", "gauc", "gauc_users", "gauc_rows", "users", "rows"]


@st.composite
def splits(draw):
    """Logits (few distinct values: heavy ties), labels of both classes, weights and users."""
    n = draw(st.integers(2, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([1, 2, 3, 10, 10**6]))
    logits = (rng.integers(-levels, levels + 1, n) * draw(st.sampled_from([0.125, 1e-6, 3.0]))).clip(-15, 15)
    logits = torch.tensor(logits, dtype=torch.float32)
    labels = torch.tensor(rng.random(n) < draw(st.floats(0.05, 0.95)), dtype=torch.float32)
    labels[:2] = torch.tensor([0.0, 1.0])
    weights = torch.tensor(rng.uniform(0.1, 5, n), dtype=torch.float32)
    users = torch.tensor(rng.choice([0, 1, 7, -3, 2**40], n), dtype=torch.int64)
    return logits, labels, weights, users


def gauc_by_loop(scores, labels, users, weights=None):
    weights = np.ones(len(scores)) if weights is None else weights
    found = []  # per user: AUC, weight, rows
    for user in np.unique(users):
        rows = (users == user) & (weights > 0)
        if len(np.unique(labels[rows])) == 2:
            own = roc_auc_score(labels[rows], scores[rows], sample_weight=weights[rows])
            found.append((own, weights[rows].sum(), (users == user).sum()))
    aucs, impressions, rows = np.array(found).reshape(-1, 3).T
    value = pytest.approx(np.average(aucs, weights=impressions), abs=1e-9) if found else None
    return UserAUC(value, len(found), rows.sum(), len(np.unique(users)))


@given(splits())
@settings(max_examples=150, deadline=None)
def test_equal_to_scikit_learn_and_to_loops(split):
    logits, labels, weights, users = split
    x, y, w = logits.numpy(), labels.double().numpy(), weights.double().numpy()
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert auc(logits, labels) == pytest.approx(roc_auc_score(y, x), abs=1e-12)
    assert auc(logits, labels, weights) == pytest.approx(roc_auc_score(y, x, sample_weight=w), abs=1e-9)
    for weight, sample_weight in ((None, None), (weights, w)):
        loss = log_loss(y, p, sample_weight=sample_weight)
        rate = np.average(y, weights=sample_weight).astype(np.float64)
        entropy = -rate * np.log(rate) - (1 - rate) * np.log(1 - rate)
        assert logloss(logits, labels, weight) == pytest.approx(loss, rel=1e-6)
        assert normalized_entropy(logits, labels, weight) == pytest.approx(loss / entropy, rel=1e-5)
        mean = np.average(p, weights=sample_weight)
        assert calibration(logits, labels, weight) == pytest.approx(mean / rate, rel=1e-5)
    assert gauc(logits, labels, users) == gauc_by_loop(x, y, users.numpy())
    for weight in (weights, weights * (weights > 1)):  # without rows of no weight, and with
        assert gauc(logits, labels, users, weight) == gauc_by_loop(x, y, users.numpy(), weight.double().numpy())


def test_auc_by_hand():
    # pairs (positive, negative): (3,1) won, (3,2) won, (2,1) won, (2,2) a tie: 3.5 of 4
    scores, labels = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([0, 0, 1, 1])
    assert auc(scores, labels) == 0.875
    # the negative at 1 weighs 3: won 3 + 1 + 3, tie 0.5 of 1 + 1 -> 7.5 of 8
    assert auc(scores, labels, torch.tensor([3.0, 1, 1, 1])) == 0.9375
    assert auc(-scores, labels) == 0.125
    assert auc(torch.zeros(4), labels) == 0.5


def test_minus_zero_ties_with_zero():
    scores, labels = torch.tensor([0.0, -0.0]), torch.tensor([0.0, 1.0])
    assert auc(scores, labels) == 0.5
    assert gauc(scores, labels, torch.zeros(2, dtype=torch.int64)).value == 0.5


def test_gauc_by_hand():
    # user 5: AUC 1 over 2 rows; user 9: AUC 0.5 (one won, one lost) over 3 rows; user 7 has clicks only
    scores = torch.tensor([0.1, 0.9, 0.5, -0.2, 0.2, 0.8, 0.3])
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    users = torch.tensor([5, 5, 7, 9, 9, 9, 7])
    assert gauc(scores, labels, users) == (pytest.approx((1.0 * 2 + 0.5 * 3) / 5), 2, 5, 3)
    # user 9's negative at 0.8 weighs 3: AUC 1/4 over a weight of 5
    weights = torch.tensor([1.0, 1, 1, 1, 1, 3, 1])
    assert gauc(scores, labels, users, weights) == (pytest.approx((1.0 * 2 + 0.25 * 5) / 7), 2, 5, 3)
    assert gauc(scores, labels, torch.arange(7)) == (None, 0, 0, 7)


def test_logloss_normalised_entropy_and_calibration_by_hand():
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0])
    half = torch.zeros(4)  # probability 1/2 everywhere
    assert logloss(half, labels) == pytest.approx(math.log(2))
    assert calibration(half, labels) == pytest.approx(2.0)
    base_rate = torch.full((4,), math.log(1 / 3), dtype=torch.float64)  # log-odds of 1/4
    assert normalized_entropy(base_rate, labels) == pytest.approx(1.0)
    assert calibration(base_rate, labels) == pytest.approx(1.0)
    confident = torch.tensor([80.0, -80.0, -80.0, 80.0])  # a wrong one costs its logit, finite
    assert logloss(confident, labels) == pytest.approx(20.0)


def test_users_far_apart_and_close_by_give_the_same_gauc():
    generator = torch.Generator().manual_seed(3)
    scores, users = torch.randn(5000, generator=generator), torch.randint(0, 300, (5000,), generator=generator)
    labels = (torch.rand(5000, generator=generator) < 0.3).float()
    expected = gauc_by_loop(scores.numpy(), labels.numpy(), users.numpy())
    assert gauc(scores, labels, users) == expected
    assert gauc(scores, labels, users * 2**50 - 2**62) == expected


def test_predictions_by_batch_equal_the_whole():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(1000, generator=generator), torch.randint(0, 2, (1000,), generator=generator)
    weights, users = torch.rand(1000, generator=generator), torch.randint(1, 30, (1000,), generator=generator)
    collected = Predictions()
    for rows in torch.arange(1000).split(33):
        buffer = logits[rows].clone().requires_grad_()
        collected.append(buffer, labels[rows], weights[rows], users[rows])
        buffer.data.fill_(7)  # the caller's buffer is its own again
    assert len(collected) == 1000
    assert torch.equal(collected.logits, logits)
    result = evaluate(collected)
    assert list(result) == METRICS
    assert result["auc"] == auc(logits, labels, weights)
    assert result["logloss"] == logloss(logits, labels, weights)
    assert result["ne"] == normalized_entropy(logits, labels, weights)
    assert result["calibration"] == calibration(logits, labels, weights)
    within = gauc(logits, labels, users, weights)
    assert tuple(result[k] for k in ("gauc", "gauc_users", "gauc_rows", "users")) == within
    assert result["rows"] == 1000


def test_without_groups_gauc_is_none():
    collected = Predictions()
    collected.append(torch.tensor([0.0, 1.0]), torch.tensor([0, 1]))
    assert evaluate(collected) == {
        "auc": 1.0,
        "auc_stderr": 0.0,
        "logloss": pytest.approx((math.log(2) + math.log1p(math.exp(-1))) / 2),
        "ne": pytest.approx((1 + math.log2(1 + math.exp(-1))) / 2),
        "calibration": pytest.approx(0.5 + 1 / (1 + math.exp(-1))),
        **dict.fromkeys(("gauc", "gauc_users", "gauc_rows", "users")),
        "rows": 2,
    }


def test_a_batch_of_the_wrong_shape_is_refused():
    with pytest.raises(ValueError, match=r"labels: expected the shape \[B\]"):
        Predictions().append(torch.zeros(3), torch.zeros(3, 1))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_is_an_error_that_says_what_to_do(label):
    collected = Predictions()
    collected.append(torch.randn(8), torch.full((8,), label))
    with pytest.raises(UserError, match=rf"all 8 labels of the split are {label}; prepare the data") as error:
        evaluate(collected)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_diverged_predictions_are_an_error(bad):
    logits = torch.tensor([0.1, bad, 0.2])
    for metric in (auc, logloss, normalized_entropy, calibration):
        with pytest.raises(UserError, match="1 of 3 predictions are NaN or infinite: training diverged"):
            metric(logits, torch.tensor([0.0, 1.0, 1.0]))


def test_an_empty_split_and_a_class_without_weight_are_errors():
    with pytest.raises(UserError, match="no rows"):
        evaluate(Predictions())
    with pytest.raises(UserError, match="weight"):
        auc(torch.randn(2), torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))


def test_gauc_leaves_out_users_without_an_id() -> None:
    """Id 0 is many strangers; ranking them against each other says nothing of one user."""
    out = Predictions()
    logits = torch.tensor([2.0, 1.0, 0.5, -1.0])
    out.append(logits, torch.tensor([1.0, 0.0, 0.0, 1.0]), groups=torch.tensor([7, 7, 0, 0]))
    found = evaluate(out)
    assert [found[k] for k in ("gauc", "gauc_users", "gauc_rows", "users", "rows")] == [1.0, 1, 2, 1, 4]


def two_models(rows: int, seed: int, weighted: bool = False) -> tuple[Predictions, Predictions]:
    """Of different noise on the same signal and the same rows; rounded, so that there are ties."""
    draw = np.random.default_rng(seed)
    signal = draw.normal(size=rows)
    labels = torch.from_numpy((draw.random(rows) < 1 / (1 + np.exp(-signal))).astype(np.float32))
    weights = torch.from_numpy(draw.random(rows)).float() if weighted else None
    out = []
    for noise in (0.5, 1.0):
        scores = (signal + noise * draw.normal(size=rows)).round(1)
        out.append(Predictions())
        out[-1].append(torch.from_numpy(scores), labels, weights)
    return out[0], out[1]


@pytest.mark.parametrize("weighted", [False, True])
def test_auc_change_against_all_pairs(weighted: bool) -> None:
    before, after = two_models(300, seed=1, weighted=weighted)
    labels = before.labels.numpy() > 0.5
    weights = np.ones(300) if before.weights is None else before.weights.numpy().astype(np.float64)
    p, n = weights[labels], weights[~labels]

    def wins(predictions: Predictions) -> np.ndarray:
        scores = predictions.logits.numpy()
        gap = scores[labels][:, None] - scores[~labels][None, :]
        return (gap > 0) + 0.5 * (gap == 0)

    moved = wins(after) - wins(before)
    mean = p @ moved @ n / (p.sum() * n.sum())
    rows, columns = moved @ n / n.sum() - mean, p @ moved / p.sum() - mean
    variance = (p**2 @ rows**2) / p.sum() ** 2 + (n**2 @ columns**2) / n.sum() ** 2
    assert auc_change(before, after) == pytest.approx((mean, variance**0.5), rel=1e-6)
    aucs = [roc_auc_score(labels, x.logits, sample_weight=weights) for x in (before, after)]
    assert mean == pytest.approx(aucs[1] - aucs[0], abs=1e-9)
    assert auc_change(before, before) == (0, 0)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_error_of_an_auc_against_all_pairs(weighted: bool) -> None:
    predictions, _ = two_models(300, seed=1, weighted=weighted)
    scores, labels = predictions.logits.numpy(), predictions.labels.numpy() > 0.5
    weights = np.ones(300) if predictions.weights is None else predictions.weights.numpy().astype(np.float64)
    p, n = weights[labels], weights[~labels]
    gap = scores[labels][:, None] - scores[~labels][None, :]
    won = (gap > 0) + 0.5 * (gap == 0) - roc_auc_score(labels, scores, sample_weight=weights)
    rows, columns = won @ n / n.sum(), p @ won / p.sum()
    variance = (p**2 @ rows**2) / p.sum() ** 2 + (n**2 @ columns**2) / n.sum() ** 2
    assert auc_stderr(predictions) == pytest.approx(variance**0.5, rel=1e-6)


def test_the_error_of_an_auc_is_the_spread_over_draws_of_rows() -> None:
    drawn = [two_models(500, seed)[0] for seed in range(400)]
    assert np.mean([auc_stderr(p) for p in drawn]) == pytest.approx(
        np.std([auc(p.logits, p.labels) for p in drawn]), rel=0.1
    )


def test_the_error_of_an_auc_change_is_the_spread_over_draws_of_rows() -> None:
    changes, errors = zip(*(auc_change(*two_models(500, seed)) for seed in range(400)))
    assert np.mean(errors) == pytest.approx(np.std(changes), rel=0.1)
