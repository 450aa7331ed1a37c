"""The comparison page, its plot and the terminal table, read back and held against the reports."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from recsys_emb.errors import UserError
from recsys_emb.report import compare, load_reports, plots, terminal_table

HOSTILE = "<script>alert('x')</script>&\"$y$[red]"


@pytest.fixture
def page(make_run, read_page, tmp_path):
    runs = [make_run(f"full-{s}", seed=s, auc=auc, gauc=None) for s, auc in ((1, 0.8912), (2, 0.8947), (3, 0.8921))]
    runs.append(
        make_run("hash-1", backend="hash", budget=0.1, auc=0.8876, gauc=None, serving_bytes=63_961, bayes_auc=0.9)
    )
    compare(runs, tmp_path / "out" / "report.html")
    return read_page(tmp_path / "out" / "report.html")


def test_the_page_needs_nothing_from_elsewhere(page):
    page.assert_self_contained()
    assert page.source.count("<svg") == 1
    assert "prefers-color-scheme: dark" in page.source


def test_the_figures_shown_are_those_of_the_reports(page):
    header, full, hashed, _, folders, _ = page.rows
    column = {cell["text"]: i for i, cell in enumerate(header)}
    aucs = [0.8912, 0.8947, 0.8921]
    assert full[column["Run"]]["text"] == "deepfm / full"
    assert full[column["AUC"]]["text"] == f"{np.mean(aucs):.4f}|± {np.std(aucs, ddof=1):.4f}"
    assert float(full[column["AUC"]]["value"]) == pytest.approx(np.mean(aucs), abs=1e-15)
    assert full[column["Serving (MB)"]]["text"] == "0.450"
    assert full[column["Training (MB)"]]["text"] == "2.3"
    assert full[column["Peak RSS (MB)"]]["text"] == "812.3"
    assert full[column["Samples/s"]]["text"] == "91,234"
    assert full[column["Seeds"]]["text"] == "3"
    assert [cell["text"] for cell in folders] == ["deepfm / full", "full-1, full-2, full-3"]
    assert full[column["Gap to Bayes"]] == {"text": "–", "value": None, "sort": None}
    assert hashed[column["Run"]]["text"] == "deepfm / hash|budget 0.1"
    assert hashed[column["AUC"]]["text"] == "0.8876"
    assert hashed[column["Serving (MB)"]]["text"] == "0.064"
    assert hashed[column["Serving (MB)"]]["value"] == "63961.0"
    assert hashed[column["Gap to Bayes"]]["text"] == "0.0124"
    assert "GAUC" not in column  # no run has one


def test_every_column_sorts(page):
    headers = page.rows[0] + page.rows[3]
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
    rows = compare([hostile, other], tmp_path / "r.html")
    page = read_page(tmp_path / "r.html")
    page.assert_self_contained()
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert any(HOSTILE in cell["text"] for row in page.rows for cell in row)
    assert any("<script>alert(1)<" in cell["text"] for row in page.rows for cell in row)
    assert "<script>alert" not in page.source
    console = Console(file=io.StringIO(), width=400)
    console.print(terminal_table(rows))
    assert f"{HOSTILE} / {HOSTILE}" in console.file.getvalue()


def test_the_terminal_table_fits_80_columns_and_cuts_nothing(make_run):
    rows = compare(
        [
            make_run(f"r{i}", backend=b, seed=i, learning_rate=lr, bayes_auc=0.9, serving_bytes=2_162_560_000)
            for i, (b, lr) in enumerate([("multi_hash", 0.001), ("multi_hash", 0.003), ("full", 0.001)])
        ]
    )
    console = Console(file=io.StringIO(), width=80)
    console.print(terminal_table(rows))
    text = console.file.getvalue()
    assert "…" not in text
    for figure in ("0.8912", "0.0088", "2,162.560", "2.3", "812.3", "91,234", "multi_hash"):
        assert figure in text, figure


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
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["deepfm / hash"]


def test_series_differ_without_colour(make_run):
    runs = [
        make_run(f"{m}-{b}", model=m, backend=b)
        for m in ("deepfm", "autoint")
        for b in ("full", "hash", "qr", "unified")
    ]
    lines = [c.lines[0] for c in plots.memory_auc(load_reports(runs)).containers]
    assert len({(line.get_marker(), line.get_linestyle(), line.get_fillstyle()) for line in lines}) == len(runs)


def test_runs_of_different_datasets_are_kept_apart(make_run, read_page, tmp_path):
    note = "Runs of 2 datasets (movielens-1m, criteo): compare figures within a dataset only."
    runs = [make_run("a"), make_run("b", backend="hash"), make_run("c", dataset="criteo")]
    for shown, noted in ((runs[:2], False), ([*runs[:2], runs[2]], True)):
        rows = compare(shown, tmp_path / "r.html")
        console = Console(file=io.StringIO(), width=80)
        console.print(terminal_table(rows))
        text = " ".join(console.file.getvalue().split())
        names = {name for name in ("criteo", "movielens-1m") if name in text}
        assert names == {row["dataset"] for row in rows}
        words = note.split("(")[0], note.split(")")[1]
        assert all(word in text for word in words) is noted
        page = read_page(tmp_path / "r.html")
        assert all(word in page.source for word in words) is noted
        assert ("Dataset" in {cell["text"] for cell in page.rows[0]}) is noted
