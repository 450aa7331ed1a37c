"""The synthetic source: what it promises about its rows, checked on the rows alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.metrics import log_loss, roc_auc_score

from recsys_emb.data.encode import prepare
from recsys_emb.data.sources._planted import (
    CRITEO_CARDINALITIES,
    PlantedModel,
    scale_cardinalities,
    sigmoid,
)
from recsys_emb.data.sources.base import source_registry
from recsys_emb.data.sources.synthetic import TrueScore
from recsys_emb.data.store import open_dataset

Synthetic = source_registry.get("synthetic")


def _model(seed: int = 1, ids: int = 10_000, zipf: float = 1.1, missing: float = 0.05, signal_fields=None):
    return PlantedModel(seed, ids, zipf, 13, missing, signal_fields)


@pytest.fixture(scope="module")
def rows():
    return _model().rows(0, 100_000)


def _read(**options: object):
    source = Synthetic(None, Synthetic.Options.model_validate(options))
    blocks = list(source.blocks())
    return (
        source,
        pl.concat([b.frame for b in blocks]),
        *(np.concatenate([getattr(b, part) for b in blocks]) for part in ("labels", "split")),
    )


@pytest.mark.parametrize("total", [100, 1_000, 100_000, 5_000_000, 50_000_000])
def test_cardinalities_sum_to_the_total(total: int) -> None:
    sizes = scale_cardinalities(total)
    assert len(sizes) == 26
    assert sum(sizes) == total
    assert min(sizes) >= 2


def test_cardinalities_of_criteo_itself() -> None:
    assert scale_cardinalities(sum(CRITEO_CARDINALITIES)) == CRITEO_CARDINALITIES


def test_rows_do_not_depend_on_the_range_asked_for() -> None:
    model = _model()
    whole = model.rows(1000, 3001)
    for cuts in ([1000, 1001, 1008, 3001], [1000, 2777, 3001]):
        parts = [_model().rows(a, b) for a, b in itertools.pairwise(cuts)]
        for name in ("ids", "dense", "logit", "labels"):
            joined = np.concatenate([getattr(p, name) for p in parts], axis=-1)
            assert np.array_equal(joined, getattr(whole, name), equal_nan=name == "dense")


def test_blocks_are_the_same_each_time_and_follow_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    source, frame, labels, split = _read(rows=5000, ids=1000)
    again = pl.concat([b.frame for b in source.blocks()])
    assert frame.equals(again)
    monkeypatch.setattr("recsys_emb.data.sources.synthetic.CHUNK_ROWS", 777)
    _, small_blocks, labels2, split2 = _read(rows=5000, ids=1000)
    assert frame.equals(small_blocks)
    assert (labels == labels2).all()
    assert (split == split2).all()
    _, other, labels3, _ = _read(rows=5000, ids=1000, seed=2)
    assert not frame.equals(other)
    assert (labels != labels3).any()


def test_shape_of_the_frame() -> None:
    source, frame, labels, _ = _read(rows=3000, ids=1000, dense=2)
    fields = source.fields()
    assert frame.columns == [f.name for f in fields.categorical] + [d.name for d in fields.dense]
    assert set(frame.dtypes) == {pl.Int32, pl.Float32}
    assert len(fields.categorical) == 26
    assert len(frame) == len(labels) == 3000
    for name, size in zip(frame.columns, scale_cardinalities(1000)):
        assert 0 <= frame[name].min() <= frame[name].max() < size


@pytest.mark.parametrize("zipf", [0.0, 1.0, 1.3])
def test_ids_follow_zipf(zipf: float) -> None:
    ids = _model(ids=100_000, zipf=zipf, missing=0.0).rows(0, 200_000).ids[2]
    counts = np.bincount(ids)
    ranks = np.array([1, 2, 5, 10, 20, 50, 100, 200])
    spread = np.array([counts[r - 1 : r - 1 + max(1, r // 5)].mean() for r in ranks])
    if zipf == 0.0:
        assert len(np.unique(ids)) > 0.99 * 29_000
        assert counts.max() < 30
        return
    # The mass of id r is that of x^-zipf between r and r + 1, which lies below a power law for the first ids.
    slope = np.polyfit(np.log(ranks[2:]), np.log(spread[2:]), 1)[0]
    assert slope == pytest.approx(-zipf, abs=0.12)
    power = 1 - zipf
    size = 29_690
    top = np.log(2) / np.log(size + 1) if zipf == 1.0 else (2**power - 1) / ((size + 1) ** power - 1)
    assert counts[0] / len(ids) == pytest.approx(top, rel=0.03)


def test_missing_values(rows) -> None:
    assert (rows.ids < 0).mean(axis=1) == pytest.approx(np.full(26, 0.05), abs=0.004)
    assert np.isnan(rows.dense).mean(axis=1) == pytest.approx(np.full(13, 0.05), abs=0.004)
    none = _model(missing=0.0).rows(0, 5000)
    assert none.ids.min() >= 0
    assert not np.isnan(none.dense).any()


def test_dense_values_are_skewed_integers_and_some_negative(rows) -> None:
    for values in rows.dense:
        values = values[~np.isnan(values)]
        assert (values == np.floor(values)).all()
        assert values.mean() > np.median(values)
    assert np.nanmin(rows.dense) < 0


def test_columns_are_independent(rows) -> None:
    ranks = np.concatenate([np.log2(rows.ids + 2), np.nan_to_num(rows.dense, nan=-9).clip(-9, 50)])
    correlation = np.corrcoef(ranks)
    assert np.abs(correlation - np.eye(len(ranks))).max() < 0.02


def test_labels_are_calibrated_to_the_true_probabilities(rows) -> None:
    p = sigmoid(rows.logit)
    assert p.mean() == pytest.approx(0.25, abs=0.02)
    order = np.argsort(p)
    for part in np.array_split(order, 10):
        error = np.sqrt((p[part] * (1 - p[part])).sum()) / len(part)
        assert abs(rows.labels[part].mean() - p[part].mean()) < 4 * error


def test_nothing_but_the_probability_tells_the_label(rows) -> None:
    surprise = rows.labels - sigmoid(rows.logit)
    columns = [rows.ids < 0, np.isnan(rows.dense), np.log2(rows.ids + 2), np.nan_to_num(rows.dense).clip(-9, 50)]
    for column in np.concatenate(columns):
        assert abs(np.corrcoef(column, surprise)[0, 1]) < 0.016


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_bayes_auc_is_about_0_8_whatever_the_seed(seed: int) -> None:
    rows = _model(seed=seed).rows(0, 30_000)
    assert roc_auc_score(rows.labels, rows.logit) == pytest.approx(0.80, abs=0.015)
    assert rows.labels.mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("options", [{}, {"split": "consecutive", "ratios": (6, 2, 2)}])
def test_bayes_scores_against_scikit_learn(options: dict) -> None:
    source, _, labels, split = _read(rows=20_000, ids=1000, **options)
    rows = PlantedModel(1, 1000, 1.1, 13, 0.05, None).rows(0, 20_000)
    assert (rows.labels == labels).all()
    bayes = source.bayes()
    assert list(bayes) == ["train", "valid", "test"]
    for code, name in enumerate(bayes):
        at = split == code
        assert bayes[name]["auc"] == pytest.approx(roc_auc_score(labels[at], rows.logit[at]), abs=1e-9)
        assert bayes[name]["logloss"] == pytest.approx(log_loss(labels[at], sigmoid(rows.logit[at])), abs=1e-9)
        assert bayes[name]["auc_error"] == 0
    if options:
        assert (split == np.repeat([0, 1, 2], [12_000, 4_000, 4_000])).all()


def test_histogram_score_states_its_error() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(-1, 1.4, 50_000).astype(np.float32)
    logit[:100] = 40.0  # beyond the bins
    labels = (rng.random(50_000) < sigmoid(logit)).astype(np.uint8)
    scores = [TrueScore(exact=e) for e in (True, False)]
    for score in scores:
        for part in np.array_split(np.arange(50_000), 7):
            score.add(logit[part], labels[part])
    exact, binned = (s.result() for s in scores)
    assert exact is not None
    assert binned is not None
    assert exact["auc"] == pytest.approx(roc_auc_score(labels, logit), abs=1e-12)
    assert abs(binned["auc"] - exact["auc"]) <= binned["auc_error"] < 1e-4
    assert binned["logloss"] == exact["logloss"]
    assert TrueScore(exact=True).result() is None


def _target_mean_auc(rows, f: int) -> float:
    """AUC on the second half of the rows of the click rate that each id had in the first half."""
    half = rows.ids.shape[1] // 2
    ids, labels = rows.ids[f] + 1, rows.labels
    seen = np.bincount(ids[:half], minlength=ids.max() + 1)
    clicks = np.bincount(ids[:half], labels[:half], minlength=ids.max() + 1)
    rate = (clicks + 20 * labels[:half].mean()) / (seen + 20)
    return float(roc_auc_score(labels[half:], rate[ids[half:]]))


def test_only_signal_fields_act_on_the_click() -> None:
    rows = _model(signal_fields=4).rows(0, 100_000)
    assert min(_target_mean_auc(rows, f) for f in range(3)) > 0.52
    for f in range(4, 26):
        assert _target_mean_auc(rows, f) == pytest.approx(0.5, abs=0.012)


def test_the_click_probability_is_a_table_of_the_signal_fields() -> None:
    """The same for equal ids of C1 and C2, whatever the other 24 fields hold; and so is the Bayes AUC."""
    rows = PlantedModel(1, 100, 0.0, 0, 0.0, 2).rows(0, 50_000)
    sizes = scale_cardinalities(100)
    table = np.full(sizes[:2], np.nan)
    table[rows.ids[0], rows.ids[1]] = rows.logit
    looked_up = table[rows.ids[0], rows.ids[1]]
    assert (looked_up == rows.logit).all()
    assert len(np.unique(looked_up)) == sizes[0] * sizes[1]
    assert all(len(np.unique(ids)) == size for ids, size in zip(rows.ids, sizes))  # noise fields hold ids all the same
    assert roc_auc_score(rows.labels, looked_up) == pytest.approx(0.8, abs=0.01)


def test_importance_falls_with_the_rank(rows) -> None:
    every = [_target_mean_auc(rows, f) for f in range(26)]
    assert np.mean(every[:5]) > np.mean(every[10:15]) + 0.005
    assert np.mean(every[10:]) > 0.505


def test_fields_interact() -> None:
    """Two fields together say more than the sum of their parts: pairs of ids deviate from an additive model."""
    rows = _model(ids=100, zipf=0.0, missing=0.0, signal_fields=2).rows(0, 200_000)
    size = scale_cardinalities(100)
    dense_free = PlantedModel(1, 100, 0.0, 0, 0.0, 2).rows(0, 200_000)
    table = np.zeros(size[:2])
    table[dense_free.ids[0], dense_free.ids[1]] = dense_free.logit
    residual = table - table.mean(0) - table.mean(1)[:, None] + table.mean()
    assert residual.std() > 0.2 * table.std()
    assert rows.labels.mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    "options",
    [{"rows": 0}, {"ids": 10}, {"signal_fields": 27}, {"signal_fields": 0, "dense": 0}, {"missing": 1.0}, {"row": 5}],
)
def test_impossible_options_are_refused(options: dict) -> None:
    with pytest.raises(ValidationError) as error:
        Synthetic.Options.model_validate(options)
    assert len(error.value.errors()) == 1


def test_large_tables_cost_nothing_to_describe() -> None:
    rows = _model(ids=sum(CRITEO_CARDINALITIES), zipf=1.05).rows(40_000_000, 40_002_000)
    assert rows.ids.max() > 1_000_000
    assert np.isfinite(rows.logit).all()


def test_a_prepared_dataset_knows_its_bayes_figures(tmp_path: Path) -> None:
    source, frame, labels, split = _read(rows=20_000, ids=1000)
    prepare(source, tmp_path / "prepared")
    dataset = open_dataset(tmp_path / "prepared")
    assert dataset.bayes == source.bayes()
    for code, name in enumerate(dataset.bayes):
        assert (dataset.split(name).labels.numpy() == labels[split == code]).all()
    train = frame.filter(pl.Series(split == 0))
    # Missing is a value of its own and 0 is for values not seen.
    assert dataset.schema.vocabularies["C3"] == train["C3"].n_unique() + 1
