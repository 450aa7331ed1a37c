"""The comparison in a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from recsys_emb.report import compare, compare_table

HOSTILE = "<script>alert('x')</script>&\"$y$[red]"


def printed(rows, width=80):
    console = Console(file=io.StringIO(), width=width)
    console.print(compare_table(rows, width))
    return console.file.getvalue()


@pytest.fixture
def rows(make_run):
    methods = [("multi_hash", 0.001), ("multi_hash", 0.003), ("full", 0.001)]
    large = {"bayes_auc": 0.9, "serving_bytes": 2_162_560_000, "auc_stderr": 0.001}
    return compare(
        [make_run(f"r{i}", backend=b, seed=i, learning_rate=lr, **large) for i, (b, lr) in enumerate(methods)]
    )


def test_every_name_and_figure_is_whole_in_80_columns(rows):
    text = printed(rows)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in text
    assert lines[0].strip() == "deepfm on movielens-1m, test split"
    assert [line.split()[0] for line in lines if "0.8912" in line] == ["multi_hash", "multi_hash", "full"]
    assert [line.strip() for line in lines if "rate=" in line] == ["learning_rate=0.001", "learning_rate=0.003"]
    for figure in ("0.8912", "0.0088", "2,162.560", "91,234"):
        assert figure in text, figure
    assert "Not shown in this width: Peak RSS (MB), Training (MB)." in " ".join(text.split())


def test_a_wider_terminal_shows_all(rows):
    text = printed(rows, 120)
    assert "812.3" in text
    assert "Not shown" not in text


def test_all_that_is_served_stands_beside_the_embeddings(make_run):
    text = printed(compare([make_run("a", served_bytes=74_447_132)]), 120)
    assert "74.447" in text
    assert text.index("0.450") < text.index("74.447")


def test_a_narrow_one_keeps_names_auc_and_size(rows):
    lines = printed(rows, 40).splitlines()
    assert max(map(len, lines)) <= 40
    assert sum("multi_hash" in line and "0.8912" in line and "2,162.560" in line for line in lines) == 2


def test_several_models_are_named_in_the_rows(make_run):
    rows = compare([make_run("a"), make_run("b", model="autoint")])
    lines = printed(rows).splitlines()
    assert lines[0].strip() == "movielens-1m, test split"
    assert any(line.startswith("autoint / full") for line in lines)


def test_names_are_shown_as_they_are(make_run):
    rows = compare([make_run("x", model=HOSTILE, backend=HOSTILE), make_run("y")])
    assert f"{HOSTILE} / {HOSTILE}" in printed(rows, 400)


def test_datasets_are_kept_apart(make_run):
    runs = [make_run("a"), make_run("b", backend="hash"), make_run("c", dataset="criteo")]
    one, two = (" ".join(printed(compare(shown)).split()) for shown in (runs[:2], runs))
    note = "Runs of 2 datasets (criteo, movielens-1m): compare figures within a dataset only."
    assert note not in one
    assert note in two
    assert one.count("movielens-1m") == 1
