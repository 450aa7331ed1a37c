"""The page of one run."""

from __future__ import annotations

import json

import numpy as np
from sklearn.metrics import log_loss, roc_auc_score

from recsys_emb.report import plots, run_page
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.stored_predictions import StoredPredictions

RNG = np.random.default_rng(3)
LOGITS = RNG.normal(-1, 1, 500).astype(np.float32)
LABELS = (RNG.random(500) < 1 / (1 + np.exp(-LOGITS))).astype(np.uint8)
KNOWN = RNG.random(500) < 0.7


def test_everything_of_a_run_on_one_page(make_run, read_page):
    run = make_run("my-run", backend="hash", budget=0.1, auc=0.80001, bayes_auc=0.825, seed=7)
    path = run_page(run)
    assert path == run / "report.html"
    page = read_page(path)
    page.assert_self_contained()
    for text in (
        "<h1>my-run</h1>",
        "deepfm / hash on movielens-1m, seed 7",
        "<dt>AUC</dt><dd>0.8000",
        "The best AUC that any model can reach on this data is 0.8250; this run is 0.0250 below it.",
        "<dt>Serving</dt><dd>449.9 kB<small>449,856 bytes</small>",
        "<dt>Training</dt><dd>2.3 MB<small>2,345,678 bytes</small>",
        "<dt>Peak RSS</dt><dd>812.3 MB<small>812,345,678 bytes</small>",
        "learning_rate: 0.001",
        "&quot;torch&quot;: &quot;2.13.0&quot;",
        "best possible AUC",
        'aria-label="Learning curve"',
        'aria-label="Serving bytes of each embedding table"',
    ):
        assert text in page.source, text


def test_tables_and_their_total_are_those_of_the_report(make_run, read_page):
    page = read_page(run_page(make_run("a")))
    header, user, item, total = ([cell["text"] for cell in row] for row in page.rows)
    assert header == ["Table", "Ids", "Rows", "Width", "Serving (bytes)", "Form"]
    assert user == ["user", "6,041", "6,041", "16", "386,624", "full"]
    assert item == ["item", "3,953", "988", "16", "63,232", "hash"]
    assert total == ["Total", "", "", "", "449,856", ""]


def test_how_sure_the_auc_is_and_what_gauc_covers(make_run, read_page):
    covered = {"gauc_users": 29, "users": 60, "gauc_rows": 300, "rows": 1000}
    source = read_page(run_page(make_run("a", auc_stderr=0.002, **covered))).source
    assert "<small>± 0.0039 (95 %): area under the ROC curve" in source
    assert "29 of 60 users, 300 of 1,000 rows (users with clicks and non-clicks)" in source


def test_the_evaluation_whose_weights_were_kept_is_marked(make_run):
    events = load_run(make_run("a")).metrics()
    (ring,) = (line for line in plots.learning_curves(events, best_step=800)[1].get_lines() if line.get_marker() == "o")
    assert ring.get_xydata().tolist() == [[800, next(e["auc"] for e in events if e["step"] == 800 and "auc" in e)]]
    assert ring.get_label() == "kept: epoch 4, step 800"
    assert len(plots.learning_curves(events, best_step=801)[1].get_lines()) == 1


def test_calibration_and_users_are_of_the_predictions_that_the_run_keeps(make_run, read_page):
    predictions = StoredPredictions(LOGITS, LABELS, known_user=KNOWN)
    page = read_page(run_page(make_run("a", predictions=predictions, unknown_share={"user": 0.25, "item": 0.0})))
    page.assert_self_contained()
    assert 'aria-label="Calibration by decile"' in page.source
    assert "1 of 2 fields have none in the test split." in page.source
    column, known, unknown, field_header, field = page.table("Known and unknown values")
    for row, rows in ((known, KNOWN), (unknown, ~KNOWN)):
        assert row[column["Rows"]]["text"] == str(rows.sum())
        assert row[column["AUC"]]["text"] == f"{roc_auc_score(LABELS[rows], LOGITS[rows]):.4f}"
        assert row[column["Logloss"]]["text"] == f"{log_loss(LABELS[rows], 1 / (1 + np.exp(-LOGITS[rows]))):.4f}"
        assert row[column["Click rate"]]["text"] == f"{LABELS[rows].mean():.4f}"
    assert [cell["text"] for cell in field_header] == ["Field", "Unknown values"]
    assert [cell["text"] for cell in field] == ["user", "25.00%"]


def test_why_a_table_has_a_column_more_is_said(make_run):
    said = "deepfm looks up 17 columns of an id: the 16 of model.embedding_dim, and its first-order weight"
    assert said in run_page(make_run("a", first_order=True)).read_text("utf-8")
    assert "first-order weight, which" not in run_page(make_run("b", first_order=False)).read_text("utf-8")


def test_without_bayes_curve_tables_or_environment_the_page_is_shorter(make_run, tmp_path):
    run = make_run("a", tables=[])
    (run / "metrics.jsonl").unlink()
    (run / "env.json").unlink()
    source = run_page(run, tmp_path / "other.html").read_text(encoding="utf-8")
    assert "<svg" not in source
    assert "Bayes" not in source
    assert "Embedding tables" not in source
    assert "Environment" not in source
    assert "<dt>AUC</dt><dd>0.8912" in source


def test_what_a_run_says_is_escaped(make_run, read_page):
    table = {"name": "<b>t", "ids": 1, "rows": 1, "width": 1, "bytes": 4, "form": "<i>"}
    run = make_run("a", tables=[table])
    (run / "env.json").write_text(json.dumps({"host": "</pre><script>alert(1)</script>"}))
    with (run / "config.yaml").open("a") as file:
        file.write("# <img src=http://example.org/x.png>\n")
    page = read_page(run_page(run))
    page.assert_self_contained()
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1
    assert not {"img", "b", "i"} & set(tags)
    assert page.rows[1][0]["text"] == "<b>t"


def test_a_bar_is_all_bytes_of_a_name_and_the_smallest_tables_are_one_bar():
    tables = [{"name": f"t{i}", "bytes": i * 1000} for i in range(50)]
    ax = plots.bytes_by_table([*tables, {"name": "t49", "bytes": 500_000}])
    names = [text.get_text() for text in ax.get_yticklabels()]
    sizes = [bar.get_width() for bar in ax.containers[0]]
    assert names == ["t49", *(f"t{i}" for i in range(48, 10, -1)), "11 smaller ones"]
    np.testing.assert_allclose(sizes, [0.549, *(i / 1000 for i in range(48, 10, -1)), 0.055])


def test_learning_curves_draw_the_events(make_run):
    events = load_run(make_run("a")).metrics()
    losses, aucs = plots.learning_curves(events)
    training, validation = losses.get_lines()
    np.testing.assert_allclose(training.get_xdata(), range(100, 1001, 100))
    np.testing.assert_allclose(training.get_ydata(), [e["loss"] for e in events if e["event"] == "train"])
    np.testing.assert_allclose(validation.get_xdata(), range(200, 1001, 200))
    np.testing.assert_allclose(aucs.get_lines()[0].get_ydata(), [e["auc"] for e in events if e["event"] == "eval"])
    two_stages = [{**e, "stage": stage} for stage in ("supernet", "retrain") for e in events]
    assert [line.get_label() for line in plots.learning_curves(two_stages)[1].get_lines()] == [
        "supernet: validation AUC",
        "retrain: validation AUC",
    ]
