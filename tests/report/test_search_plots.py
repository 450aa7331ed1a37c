"""The plots of a search, held against trials made by hand."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys_emb.report import search_plots
from recsys_emb.report.frames import records


def trial(number, state="complete", auc=None, serving_bytes=None, enqueued=None):
    return {"number": number, "state": state, "auc": auc, "serving_bytes": serving_bytes, "enqueued": enqueued}


@pytest.fixture
def trials() -> pl.DataFrame:
    return pl.DataFrame(
        [
            trial(0, auc=0.80, serving_bytes=4_000_000, enqueued="full"),
            trial(1, "infeasible", serving_bytes=9_000_000),
            trial(2, auc=0.78, serving_bytes=1_000_000),
            trial(3, "pruned", auc=0.70, serving_bytes=1_000_000),
            trial(4, auc=0.79, serving_bytes=1_000_000),
            trial(5, "failed"),
            trial(6, auc=0.81, serving_bytes=2_000_000),
            trial(7, auc=0.77, serving_bytes=3_000_000),
        ]
    )


def lines(ax):
    return {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}


def test_history_draws_every_kind_of_trial_and_the_best_so_far(trials):
    drawn = lines(search_plots.history(trials))
    assert drawn["trial"] == [[2, 0.78], [4, 0.79], [6, 0.81], [7, 0.77]]
    assert drawn["baseline"] == [[0, 0.80]]
    assert drawn["pruned"] == [[3, 0.70]]
    assert drawn["best so far"] == [[0, 0.80], [2, 0.80], [4, 0.80], [6, 0.81], [7, 0.81]]
    assert drawn["infeasible"] == [[1, 0]]
    assert drawn["failed"] == [[5, 0]]


def test_the_front_is_what_no_trial_beats_in_both(trials):
    front = search_plots.pareto_front(trials)
    assert [row["number"] for row in front] == [4, 6]
    rng = np.random.default_rng(1)
    many = [trial(i, auc=float(a), serving_bytes=int(b)) for i, (a, b) in enumerate(rng.integers(0, 30, (200, 2)))]
    beaten = {
        x["number"]
        for x in many
        for y in many
        if (y["auc"] >= x["auc"] and y["serving_bytes"] < x["serving_bytes"])
        or (y["auc"] > x["auc"] and y["serving_bytes"] <= x["serving_bytes"])
    }
    best = [row for row in many if row["number"] not in beaten]
    expected = {(row["auc"], row["serving_bytes"]) for row in best}
    front = search_plots.pareto_front(many)
    assert {(row["auc"], row["serving_bytes"]) for row in front} == expected
    assert len(front) == len(expected)  # equal trials once


def test_pareto_is_in_megabytes_and_names_baselines(trials):
    ax = search_plots.pareto(trials, budget_bytes=3_500_000)
    drawn = lines(ax)
    assert drawn["Pareto front"] == [[1.0, 0.79], [2.0, 0.81]]
    assert sorted(drawn["trial"]) == [[1.0, 0.78], [3.0, 0.77]]
    assert drawn["full"] == [[4.0, 0.80]]
    assert [x for x, _ in drawn["budget"]] == [3.5, 3.5]
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert {"trial", "Pareto front", "full", "budget"} <= set(named)
    assert search_plots.pareto(trials.clear()).get_xscale() == "log"  # nothing finished yet


def test_importances_are_sorted_and_the_least_left_out():
    shares = {f"p{i}": i / 300 for i in range(25)}
    ax = search_plots.importances(shares)
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names == [f"p{i}" for i in range(5, 25)]  # from the bottom up
    np.testing.assert_allclose([bar.get_width() for bar in ax.containers[0]], [i / 300 for i in range(5, 25)])


def test_widths_are_drawn_against_ids_by_name():
    tables = [
        {"name": "user", "ids": 6000, "width": 8},
        {"name": "item", "ids": 4000, "width": 0},
        {"name": "(shared)", "ids": None, "width": None},
    ]
    ax = search_plots.widths(pl.DataFrame(tables))
    assert ax.get_lines()[0].get_xydata().tolist() == [[6000, 8], [4000, 0]]
    assert [text.get_text() for text in ax.texts] == ["user", "item"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0", "8"]


def test_frames_of_both_kinds_draw_alike(trials):
    assert lines(search_plots.history(trials.to_pandas())) == lines(search_plots.history(records(trials)))


def test_names_of_fields_do_not_lie_on_each_other():
    near = [{"name": f"item[{n}:]", "ids": 1000 + n, "width": 8} for n in range(10)]
    ax = search_plots.widths([*near, {"name": "user", "ids": 10, "width": 8}, {"name": "zip", "ids": 1009, "width": 1}])
    assert sorted(text.get_text() for text in ax.texts) == ["item[9:]", "user", "zip"]
    ax.figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_a_front_of_baselines_alike():
    alike = [trial(None, auc=0.8, serving_bytes=1_000_000, enqueued=name) for name in ("uniform", "uniform_widths")]
    assert len(search_plots.pareto_front([*alike, trial(0, auc=0.8, serving_bytes=1_000_000)])) == 1


def test_long_names_of_baselines_stay_within_the_figure(trials):
    names = [f"{name}, settings of trial 7" for name in ("mixed_dim", "unified", "quantized_svd", "pq", "low_rank")]
    many = [*records(trials), *(trial(None, auc=0.7, serving_bytes=9, enqueued=name) for name in names)]
    for draw in (search_plots.history, search_plots.pareto):
        ax = draw(many)
        ax.figure.draw_without_rendering()
        box, figure = ax.get_legend().get_window_extent(), ax.figure.bbox
        assert figure.x0 <= box.x0
        assert box.x1 <= figure.x1
