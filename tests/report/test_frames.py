"""Frames hold what the reports hold, and the plots take them like rows."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from recsys_emb.errors import UserError
from recsys_emb.report import events_frame, group_by_seed, load_reports, plots, runs_frame, tables_frame, trials_frame
from recsys_emb.report.frames import records


@pytest.fixture
def runs(make_run):
    return [
        make_run("full-1", seed=1, auc=0.89, gauc=None),
        make_run("full-2", seed=2, auc=0.91, gauc=None),
        make_run("hash", backend="hash", budget=0.1, auc=0.88, gauc=None, serving_bytes=63_961),
    ]


def test_a_row_for_each_config_or_for_each_run(runs):
    frame = runs_frame(runs).set_index("backend")
    assert list(frame.index) == ["full", "hash"]
    assert frame.loc["full", "auc"] == pytest.approx(0.9)
    assert frame.loc["full", "auc_std"] == pytest.approx(np.std([0.89, 0.91], ddof=1))
    assert frame.loc["hash", "n"] == 1
    assert np.isnan(frame.loc["hash", "auc_std"])
    assert not {"config", "tables"} & set(frame)
    each = runs_frame(runs, by_seed=False)
    assert each["run"].tolist() == ["full-1", "full-2", "hash"]
    assert each["auc"].tolist() == [0.89, 0.91, 0.88]


def test_tables_and_events_of_a_run(runs):
    tables = tables_frame(runs[0])
    assert tables["name"].tolist() == ["user", "item"]
    assert tables["bytes"].sum() == 449_856
    events = events_frame(runs[0])
    assert (events["event"] == "eval").sum() == 5
    assert events.loc[events["event"] == "train", "step"].tolist() == list(range(100, 1001, 100))


def test_trials_of_a_search(make_search):
    frame = trials_frame(make_search("a"))
    assert frame["state"].tolist() == ["complete", "infeasible", "complete", "pruned", "failed", "complete"]
    assert frame.loc[frame["winner"], "auc"].tolist() == [0.8931]
    assert frame["param:training.rate"].dropna().tolist() == [0.00123456] * 3


def test_a_folder_that_is_no_run_is_a_one_line_error(tmp_path):
    for read in (tables_frame, events_frame, lambda folder: runs_frame([folder])):
        with pytest.raises(UserError, match="not a run folder"):
            read(tmp_path)


def test_no_figure_is_none_in_any_table():
    rows = [{"a": 1.5, "b": "x"}, {"a": None, "b": None}]
    assert records(rows) == rows
    assert records(pl.DataFrame(rows)) == rows
    assert records(pl.DataFrame(rows).to_pandas()) == rows


def test_plots_draw_frames_as_they_draw_rows(runs):
    of_rows, of_frame = plots.memory_auc(group_by_seed(load_reports(runs))), plots.memory_auc(runs_frame(runs))
    for a, b in zip(of_rows.containers, of_frame.containers, strict=True):
        np.testing.assert_array_equal(a.lines[0].get_xydata(), b.lines[0].get_xydata())
    _, aucs = plots.learning_curves(events_frame(runs[0]))
    assert len(aucs.get_lines()[0].get_xdata()) == 5
    assert plots.bytes_by_table(tables_frame(runs[0])).containers[0].patches[0].get_width() == pytest.approx(0.386624)
