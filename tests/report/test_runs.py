"""Reading run folders, and grouping runs by seed."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_emb.errors import UserError
from recsys_emb.report import group_by_seed, load_report, load_reports
from recsys_emb.report.runs import AVERAGED
from recsys_emb.training.run_dir import load_run


def test_a_report_knows_its_run_and_its_gap_to_bayes(make_run):
    report = load_report(make_run("a", auc=0.79, bayes_auc=0.8125))
    assert report["run"] == "a"
    assert report["config"]["training"]["learning_rate"] == 0.001
    assert report["bayes_gap"] == pytest.approx(0.0225)
    assert load_report(make_run("b"))["bayes_gap"] is None


def test_seeds_are_one_row_with_mean_and_spread(make_run):
    aucs, rates = [0.8912, 0.8943, 0.8927], [90_000.0, 95_000.0, 91_500.0]
    runs = [
        make_run(f"s{seed}", seed=seed, auc=auc, samples_per_second=rate)
        for seed, auc, rate in zip((1, 2, 3), aucs, rates)
    ]
    (row,) = group_by_seed(load_reports(runs))
    assert row["n"] == 3
    assert row["seeds"] == [1, 2, 3]
    assert row["runs"] == ["s1", "s2", "s3"]
    assert row["auc"] == pytest.approx(np.mean(aucs))
    assert row["auc_std"] == pytest.approx(np.std(aucs, ddof=1))
    assert row["samples_per_second"] == pytest.approx(np.mean(rates))
    assert row["samples_per_second_std"] == pytest.approx(np.std(rates, ddof=1))
    assert row["serving_bytes"] == 449_856
    assert row["serving_bytes_std"] == 0
    assert row["bayes_auc"] is None
    assert row["settings"] == ""


def test_a_single_run_is_a_row_without_spread(make_run):
    (row,) = group_by_seed(load_reports([make_run("one", epochs=3)]))
    assert row["n"] == 1
    assert all(row[f"{key}_std"] is None for key in AVERAGED)
    assert row["epochs"] == 3


def test_a_folder_given_twice_counts_once(make_run):
    run = make_run("a")
    assert len(load_reports([run, run / ".." / "a", str(run)])) == 1


def test_rows_are_told_apart_by_the_settings_that_differ(make_run):
    runs = [
        make_run("slow", learning_rate=0.001, auc=0.85),
        make_run("fast", learning_rate=0.01, auc=0.86),
        make_run("hash", backend="hash", budget=0.1, auc=0.87),
    ]
    rows = group_by_seed(load_reports(runs))
    assert [row["runs"] for row in rows] == [["hash"], ["fast"], ["slow"]]  # best AUC first
    assert [row["settings"] for row in rows] == ["", "learning_rate=0.01", "learning_rate=0.001"]
    assert [row["budget_bytes"] for row in rows] == [63_961, None, None]


def test_one_budget_in_two_words_is_one_row(make_run):
    runs = [make_run("ratio", seed=1, budget=0.1), make_run("bytes", seed=2, budget=63_961)]
    assert [row["n"] for row in group_by_seed(load_reports(runs))] == [2]


def test_options_of_different_methods_tell_nothing(make_run):
    runs = [make_run(b, backend=b, config={"embedding.options": {"seed": i}}) for i, b in enumerate(("qr", "hash"))]
    assert [row["settings"] for row in group_by_seed(load_reports(runs))] == ["", ""]
    runs.append(make_run("qr2", backend="qr", config={"embedding.options": {"seed": 7}}))
    assert [r["settings"] for r in group_by_seed(load_reports(runs))] == ["seed=0", "", "seed=7"]


def test_runs_of_two_precisions_are_not_averaged(make_run):
    rows = group_by_seed(load_reports([make_run(p, seed=i, precision=p) for i, p in enumerate(("bf16", "fp32"))]))
    assert [row["settings"] for row in rows] == ["ran with precision=bf16", "ran with precision=fp32"]


def test_datasets_are_never_averaged_together(make_run):
    rows = group_by_seed(load_reports([make_run("a", seed=1), make_run("b", seed=2, dataset="criteo")]))
    assert [(row["dataset"], row["n"]) for row in rows] == [("criteo", 1), ("movielens-1m", 1)]


def test_what_is_no_finished_run_is_a_one_line_error(make_run, tmp_path):
    no_report = make_run("no_report")
    (no_report / "report.json").unlink()
    torn = make_run("torn")
    (torn / "report.json").write_text('{"auc": 0.')
    short = make_run("short")
    (short / "report.json").write_text('{"model": "fm", "backend": "full"}')
    cases = {
        tmp_path / "nowhere": "no such folder",
        tmp_path: "not a run folder",
        make_run("unfinished", done=False): r"no DONE\); .*train --out \S+unfinished --resume`",
        no_report: r"not finished \(no report.json\)",
        torn: "report.json: not valid JSON",
        short: "lacks the key 'dataset'",
    }
    for folder, message in cases.items():
        with pytest.raises(UserError, match=message) as error:
            load_report(folder)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="no runs given"):
        load_reports([])


def test_a_broken_line_of_metrics_is_named(make_run):
    run = load_run(make_run("a"))
    assert [e["event"] for e in run.metrics()].count("eval") == 5
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tr\n')
    with pytest.raises(UserError, match=r"metrics.jsonl line 16: not valid JSON"):
        run.metrics()
