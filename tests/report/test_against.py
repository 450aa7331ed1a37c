"""Differences of AUC to one run, and their errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from recsys_emb.data.folder import checksum
from recsys_emb.report import compare
from recsys_emb.training.delong import auc_change
from recsys_emb.training.run_files import PREDICTIONS
from recsys_emb.training.stored_predictions import StoredPredictions

RNG = np.random.default_rng(5)
LABELS = (RNG.random(400) < 0.3).astype(np.uint8)


@pytest.fixture
def predicted(make_run):
    """``predicted(name, noise, ...)``: a run whose logits are the labels and noise."""

    def make(name, noise, labels=LABELS, **options):
        logits = (labels + np.random.default_rng(len(name)).normal(0, noise, len(labels))).astype(np.float32)
        stored = StoredPredictions(logits, labels)
        return make_run(name, predictions=stored, auc=roc_auc_score(labels, logits), **options), stored

    return make


def by_name(rows):
    return {row["runs"][0]: row for row in rows}


def test_the_difference_is_delongs_of_the_same_rows(predicted):
    (base, before), (other, after) = predicted("base", 1.0), predicted("other", 0.8, backend="hash")
    rows = by_name(compare([other], against=base))
    change, error = auc_change(before.logits, after.logits, LABELS)
    assert rows["other"]["auc_change"] == pytest.approx(change, abs=1e-12)
    assert rows["other"]["auc_change_error"] == pytest.approx(error)
    assert rows["base"].get("auc_change") is None


def test_seeds_are_paired_and_their_spread_counts(predicted):
    runs = [predicted(f"{b}{s}", n, seed=s, backend=b) for b, n in (("full", 1.0), ("hash", 0.8)) for s in (1, 2, 3)]
    folders, stored = zip(*runs)
    row = by_name(compare(folders, against=folders[0]))["hash1"]
    changes, errors = zip(*(auc_change(stored[s].logits, stored[3 + s].logits, LABELS) for s in range(3)))
    assert row["auc_change"] == pytest.approx(np.mean(changes))
    expected = np.sqrt(np.mean(np.square(errors)) + np.var(changes, ddof=1) / 3)
    assert row["auc_change_error"] == pytest.approx(expected)


def test_other_rows_or_none_leave_the_error_unknown(predicted, make_run):
    base, _ = predicted("base", 1.0, seed=1)
    others = [
        predicted("shuffled", 0.8, labels=LABELS[::-1].copy(), backend="a")[0],
        make_run("without", backend="b", auc=0.7),
        predicted("other-seed", 0.9, backend="c", seed=7)[0],
    ]
    rows = by_name(compare(others, against=base))
    for name in ("shuffled", "without", "other-seed"):
        assert rows[name]["auc_change"] == pytest.approx(rows[name]["auc"] - rows["base"]["auc"]), name
        assert rows[name]["auc_change_error"] is None, name


def test_other_datasets_are_not_subtracted(predicted):
    base, _ = predicted("base", 1.0)
    other, _ = predicted("other", 0.8, dataset="criteo")
    assert by_name(compare([other], against=base))["other"].get("auc_change") is None


def test_an_artifact_knows_its_error_against_its_own_run(predicted, make_run):
    base, _ = predicted("base", 1.0)
    stranger, _ = predicted("stranger", 0.9, backend="hash")
    made = {"auc": -0.001, "stderr": 0.0005, "predictions": checksum(base / PREDICTIONS)}
    artifact = make_run("artifact", backend="full+int8", change_from_run=made)
    rows = by_name(compare([artifact, stranger], against=base))
    assert rows["artifact"]["auc_change_error"] == 0.0005
    assert by_name(compare([artifact, base], against=stranger))["artifact"]["auc_change_error"] is None


def test_the_page_says_what_it_is_against(predicted, read_page, tmp_path):
    (base, _), (other, _) = predicted("base", 1.0), predicted("other", 0.8, backend="hash")
    compare([other], tmp_path / "r.html", against=base)
    page = read_page(tmp_path / "r.html")
    column, first, second = page.table("Quality")
    assert (first[column["Run"]]["text"], second[column["Difference"]]["text"]) == ("hash", "–")
    assert first[column["Difference"]]["text"].startswith("+0.")
    assert "Differences are to base, seed by seed" in page.source
    assert 'aria-label="Difference of test AUC to base"' in page.source
    assert json.loads((base / "report.json").read_text()).get("auc_change") is None  # nothing is written to runs
