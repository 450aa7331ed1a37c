"""The comparison page and its plots, read back and held against the reports."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from matplotlib.image import imread

from recsys_emb.embeddings import list_backends
from recsys_emb.errors import UserError
from recsys_emb.report import compare, group_by_seed, load_reports, plots

HOSTILE = "<script>alert('x')</script>&\"$y$[red]"


@pytest.fixture
def page(make_run, read_page, tmp_path):
    runs = [
        make_run(f"full-{s}", seed=s, auc=auc, gauc=None, auc_stderr=0.003)
        for s, auc in ((1, 0.8912), (2, 0.8947), (3, 0.8921))
    ]
    (runs[0] / "report.html").touch()
    runs.append(
        make_run(
            "hash-1",
            backend="hash",
            budget=0.1,
            auc=0.8876,
            gauc=None,
            bayes_auc=0.9,
            serving_bytes=63_961,
            served_bytes=463_961,
        )
    )
    compare(runs, tmp_path / "out" / "report.html")
    return read_page(tmp_path / "out" / "report.html")


def test_the_page_needs_nothing_from_elsewhere(page):
    page.assert_self_contained()
    assert page.source.count("<svg") == 2
    assert "prefers-color-scheme: dark" in page.source


def test_the_figures_shown_are_those_of_the_reports(page):
    column, full, hashed = page.table("Quality")
    aucs = [0.8912, 0.8947, 0.8921]
    assert full[column["Run"]]["text"] == "full"
    assert full[column["AUC"]]["text"] == f"{np.mean(aucs):.4f}|± {np.std(aucs, ddof=1):.4f}"
    assert float(full[column["AUC"]]["value"]) == pytest.approx(np.mean(aucs), abs=1e-15)
    error = np.hypot(0.003, np.std(aucs, ddof=1) / 3**0.5)  # one test set for all, three seeds
    assert full[column["± 95 %"]]["text"] == f"{1.96 * error:.4f}"
    assert full[column["Seeds"]]["text"] == "3"
    assert full[column["Gap to Bayes"]] == {"text": "–", "value": None, "sort": None}
    assert hashed[column["Run"]]["text"] == "hash|budget 0.064 MB"
    assert hashed[column["AUC"]]["text"] == "0.8876"
    assert hashed[column["± 95 %"]]["text"] == "–"
    assert hashed[column["Gap to Bayes"]]["text"] == "0.0124"
    assert not {"GAUC", "Difference"} & set(column)  # no run has one

    column, full, hashed = page.table("Size and speed")
    assert full[column["Serving (MB)"]]["text"] == "0.450"
    assert full[column["Training (MB)"]]["text"] == "2.3"
    assert full[column["Peak RSS (MB)"]]["text"] == "812.3"
    assert full[column["Samples/s"]]["text"] == "91,234"
    assert hashed[column["Serving (MB)"]]["text"] == "0.064"
    assert hashed[column["Serving (MB)"]]["value"] == "63961.0"
    assert hashed[column["Artifact (MB)"]]["text"] == "0.464"


def test_pages_of_runs_are_linked_where_there_are_any(page):
    column, full, hashed = page.table("What differs")
    assert full[column["Pages"]]["text"] == "full-1, full-2, full-3"
    assert hashed[column["Pages"]]["text"] == "hash-1"
    assert [attrs["href"] for tag, attrs in page.elements if tag == "a"] == ["../full-1/report.html"]


def test_what_differs_stands_above_the_figures(make_run, read_page, tmp_path):
    runs = [
        make_run("slow", learning_rate=0.001),
        make_run("fast", learning_rate=0.01),
        make_run("given", budget="50KB"),
        make_run("ratio", budget=0.1),
    ]
    compare(runs, tmp_path / "r.html")
    page = read_page(tmp_path / "r.html")
    column, *rows = page.table("What differs")
    assert list(column) == ["Run", "Budget (MB)", "learning_rate", "Pages"]
    told = {row[-1]["text"]: (row[1]["text"], row[2]["text"]) for row in rows}
    assert told == {
        "slow": ("–", "0.001"),
        "fast": ("–", "0.01"),
        "given": ("0.050", "0.001"),
        "ratio": ("0.064", "0.001"),
    }
    assert page.source.index("What differs") < page.source.index("<svg") < page.source.index("<h2>Quality")


def test_many_settings_share_a_cell(make_run, read_page, tmp_path):
    runs = [make_run(n, config={f"training.k{i}": i * j for i in range(1, 9)}) for j, n in enumerate("ab")]
    compare(runs, tmp_path / "r.html")
    column, *rows = read_page(tmp_path / "r.html").table("What differs")
    assert list(column) == ["Run", "Settings", "Pages"]
    assert "k2=2, k3=3" in {row[2]["text"]: row[1]["text"] for row in rows}["b"]


def test_every_column_sorts(page):
    headers = [cell for row in page.rows for cell in row if cell["sort"] is not None]
    assert len(headers) > 15
    assert all(cell["sort"] == "none" for cell in headers)
    assert sum(tag == "button" for tag, _ in page.elements) == len(headers)


def test_the_plot_is_an_image_beside_the_page(make_run, tmp_path):
    compare([make_run("a")], tmp_path / "r.html")
    pixels = imread(tmp_path / "r.png")
    assert min(pixels.shape[:2]) > 600
    assert pixels[..., :3].std() > 0.01  # not blank
    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_names_from_outside_cannot_become_markup(make_run, read_page, tmp_path):
    run = make_run("x", model=HOSTILE, backend=HOSTILE, dataset=HOSTILE)
    hostile = run.rename(tmp_path / "<script>alert(1)<")
    other = make_run("y", dataset="b&b")
    compare([hostile, other], tmp_path / "r.html")
    page = read_page(tmp_path / "r.html")
    page.assert_self_contained()
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert any(HOSTILE in cell["text"] for row in page.rows for cell in row)
    assert any("<script>alert(1)<" in cell["text"] for row in page.rows for cell in row)
    assert "<script>alert" not in page.source


def test_out_must_be_an_html_file_that_can_be_written(make_run, tmp_path):
    run = make_run("a")
    with pytest.raises(UserError, match=r"expected the name of an \.html file"):
        compare([run], tmp_path / "report.png")
    with pytest.raises(UserError, match="cannot write"):
        compare([run], run / "DONE" / "report.html")


def test_points_of_the_plot_are_megabytes_and_auc(make_run):
    runs = [
        make_run(f"h{i}", backend="hash", serving_bytes=b, auc=a) for i, (b, a) in enumerate([(9e6, 0.8), (1e6, 0.7)])
    ]
    ax = plots.memory_auc(load_reports(runs))
    line = ax.containers[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(orig=False), [1.0, 9.0])  # by size, so that the line does not turn back
    np.testing.assert_allclose(line.get_ydata(orig=False), [0.7, 0.8])
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["hash"]


def test_all_that_is_served_has_its_own_plot_where_it_is_known(make_run, read_page, tmp_path):
    sizes = {"full": 9_000_000, "hash": 3_000_000}
    runs = [make_run(b, backend=b, serving_bytes=n // 3, served_bytes=n) for b, n in sizes.items()]
    ax = plots.memory_auc(load_reports(runs), size="served_bytes")
    assert [c.lines[0].get_xdata(orig=False).tolist() for c in ax.containers] == [[9.0], [3.0]]
    compare(runs, tmp_path / "known.html")
    compare([*runs, make_run("older", backend="qr")], tmp_path / "unknown.html")
    drawn = [read_page(tmp_path / f"{name}.html").source.count("<svg") for name in ("known", "unknown")]
    assert drawn == [3, 2]


def test_only_budgets_of_one_method_are_joined(make_run):
    runs = [
        make_run(f"{rate}-{b}", backend="qr", budget=b, learning_rate=rate, serving_bytes=int(b * 1e6))
        for rate in (0.001, 0.01)
        for b in (0.1, 0.2)
    ]
    ax = plots.memory_auc(group_by_seed(load_reports(runs)))
    assert [len(c.lines[0].get_xdata()) for c in ax.containers] == [2, 2]
    assert len({c.lines[0].get_marker() for c in ax.containers}) == 2
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["qr, learning_rate=0.001", "qr, learning_rate=0.01"]


def test_no_two_methods_have_one_colour_and_one_sign(make_run):
    runs = [make_run(name, backend=name) for name in list_backends()]
    drawn = [c.lines[0] for c in plots.memory_auc(load_reports(runs)).containers]
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == len(runs)


def test_methods_and_models_differ_without_colour(make_run):
    runs = [
        make_run(f"{m}-{b}", model=m, backend=b)
        for m in ("deepfm", "autoint")
        for b in ("full", "hash", "qr", "unified")
    ]
    lines = [c.lines[0] for c in plots.memory_auc(load_reports(runs)).containers]
    assert len({(line.get_marker(), line.get_linestyle(), line.get_fillstyle()) for line in lines}) == len(runs)


def test_intervals_are_drawn_around_the_aucs(make_run):
    rows = group_by_seed(
        load_reports([make_run("a", auc=0.8, auc_stderr=0.01), make_run("b", backend="hash", auc=0.7)])
    )
    ax = plots.auc_intervals(rows)
    bars = ax.containers[0]
    assert bars.lines[0].get_xdata().tolist() == [0.8, 0.7]
    segment = bars.lines[2][0].get_segments()[0]
    np.testing.assert_allclose(segment[:, 0], [0.8 - 0.0196, 0.8 + 0.0196], atol=1e-6)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["full", "hash"]


def test_aucs_that_lie_close_leave_their_axis_readable(make_run):
    runs = [make_run(f"r{i}", backend=f"b{i}", auc=0.8733 + i * 1e-5) for i in range(3)]
    ax = plots.auc_intervals(group_by_seed(load_reports(runs)))
    low, high = ax.get_xlim()
    assert high - low == pytest.approx(0.001)
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
    assert len(boxes) >= 2
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


def test_runs_of_different_datasets_are_kept_apart(make_run, read_page, tmp_path):
    runs = [make_run("a"), make_run("b", backend="hash"), make_run("c", dataset="criteo")]
    for shown, noted in ((runs[:2], False), ([*runs[:2], runs[2]], True)):
        compare(shown, tmp_path / "r.html")
        page = read_page(tmp_path / "r.html")
        words = "Runs of 2 datasets (", "): compare figures within a dataset only."
        assert all(word in page.source for word in words) is noted
        assert ("Dataset" in page.table("Quality")[0]) is noted
