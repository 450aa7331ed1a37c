"""The page of a search, read back and held against its files."""

from __future__ import annotations

import json

import polars as pl
import pytest

from recsys_emb.errors import UserError
from recsys_emb.report import search_page


def texts(row):
    return [cell["text"] for cell in row]


def test_the_winner_stands_beside_the_baselines(make_search, read_page):
    folder = make_search("a")
    path = search_page(folder)
    assert path == folder / "report.html"
    page = read_page(path)
    page.assert_self_contained()
    header, winner, uniform, full = page.rows[:4]
    titles = ["Name", "Method", "Test AUC", "Test logloss", "Validation AUC", "Serving (MB)", "Of full", "Note"]
    assert texts(header) == titles
    method = "deepfm / field_dim|rate=0.00123, widths 8"
    assert texts(winner) == ["trial 3", method, "0.8912", "0.3245", "0.8931", "0.256", "40.02%", "winner|trials/0003"]
    assert texts(uniform)[:3] == ["uniform", "deepfm / full", "0.8870"]
    assert texts(full) == [
        *("full", "deepfm / full", "–", "–", "–", "0.640", "100.00%"),
        "infeasible|639,616 bytes, the budget is 320,000",
    ]
    for text in (
        "<h1>Search widths</h1>",
        "deepfm on movielens-1m: 4 trials (2 complete, 1 pruned, 1 failed)",
        "<dt>Method</dt><dd>deepfm / field_dim<small>rate=0.00123, widths 8</small>",
        "<dt>Test AUC</dt><dd>0.8912<small>trial 3</small>",
        "<dt>Serving</dt><dd>256.0 kB<small>40.02% of the full tables; 80.0% of the budget</small>",
        "the best AUC within 320.0 kB; sampler tpe, pruner median, seed 1.",
    ):
        assert text in page.source, text
    assert page.source.count("<svg") == 4
    assert "Hypervolume" not in page.source
    assert "Supernet" not in page.source
    assert 'class="warning"' not in page.source


def test_a_winner_worse_than_the_mean_rate_is_marked(make_search):
    folder = make_search("a")
    summary = json.loads((folder / "search.json").read_text())
    summary["winner"]["test"]["ne"] = 1.0312
    (folder / "search.json").write_text(json.dumps(summary))
    source = search_page(folder).read_text("utf-8")
    assert '<p class="warning">The winner: its normalised entropy on the test split is 1.0312, above 1' in source


def test_the_title_names_the_models_that_were_searched(make_search):
    source = search_page(make_search("a", models=["deepfm", "fm"])).read_text("utf-8")
    assert "deepfm, fm on movielens-1m: 4 trials" in source


def test_runs_with_a_page_are_linked(make_search, read_page):
    folder = make_search("a")
    (folder / "trials/0003/report.html").touch()
    page = read_page(search_page(folder))
    assert [attrs["href"] for tag, attrs in page.elements if tag == "a"] == ["trials/0003/report.html"] * 2


def test_every_trial_is_a_row_with_its_parameters(make_search, read_page):
    page = read_page(search_page(make_search("a")))
    header, uniform, full, first, pruned, failed, winner = page.rows[4:]
    assert texts(header) == ["Trial", "State", "AUC", "Serving (MB)", "Time (s)", "user", "rate", "Note"]
    assert texts(uniform) == [
        "uniform",
        "complete",
        "0.8881",
        "0.225",
        "–",
        "–",
        "–",
        "on the front|baselines/uniform",
    ]
    assert texts(full)[0] == "full"
    assert texts(full)[-1] == "|639,616 bytes, the budget is 320,000"
    assert texts(first) == ["0", "complete", "0.8801", "0.300", "61.5", "8", "0.001235", "trials/0000"]
    assert texts(pruned)[1:3] == ["pruned", "0.8000"]
    assert texts(failed)[-1] == "|ValueError: <b>boom</b>"
    assert texts(winner)[-1] == "winner, on the front|trials/0003"
    assert first[6]["value"] == "0.00123456"  # sorted by the number, not by what is shown of it


def test_many_parameters_share_a_cell(make_search, read_page):
    folder = make_search("a")
    trials = pl.read_parquet(folder / "trials.parquet")
    trials = trials.with_columns(pl.lit(4).alias(f"param:embedding.options.widths.C{i}") for i in range(10))
    trials.write_parquet(folder / "trials.parquet")
    page = read_page(search_page(folder))
    assert texts(page.rows[4])[-2:] == ["Parameters", "Note"]
    assert texts(page.rows[7])[-2].startswith("|C0 4, C1 4, ")
    assert texts(page.rows[7])[-2].endswith("user 8, rate 0.001235")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            {"spearman": 0.83, "n": 5, "supported": True},
            "0.83 over 5 candidates that were carried out: scores rank candidates",
        ),
        (
            {"spearman": 0.1, "n": 5, "supported": False},
            "0.10 over 5 candidates that were carried out: scores do not",
        ),
        ({"spearman": None, "n": 3, "supported": False}, "Too few candidates were carried out"),
        (None, "Too few candidates were carried out"),
    ],
)
def test_what_supernet_scores_were_worth_is_said(make_search, read_page, found, said):
    folder = make_search("a", scoring="supernet", scored="supernet", correlation=found)
    trials = pl.read_parquet(folder / "trials.parquet")
    candidates = trials.with_columns(score=pl.col("auc").cast(pl.Float64), auc=pl.lit(None, pl.Float64))
    candidates.filter(pl.col("number").is_not_null()).write_parquet(folder / "candidates.parquet")
    trials.with_columns(score=pl.lit(0.88)).write_parquet(folder / "trials.parquet")
    page = read_page(search_page(folder))
    assert said.replace("'", "&#x27;") in page.source
    assert texts(page.rows[4])[2:4] == ["AUC", "Score"]
    assert texts(page.rows[-1])[:4] == ["3", "complete", "–", "0.8931"]  # of the candidates


def test_a_pareto_search_shows_its_hypervolume(make_search):
    source = search_page(make_search("a", mode="pareto", budget_bytes=None, hypervolume=0.31234)).read_text("utf-8")
    assert "<dt>Hypervolume</dt><dd>0.3123" in source
    assert "Searched: AUC against bytes; sampler tpe" in source
    assert "of the budget" not in source


def test_a_baseline_that_wins_is_said_to(make_search):
    folder = make_search("a")
    summary = json.loads((folder / "search.json").read_text())
    summary["winner"] |= {"name": "uniform", "baseline": "uniform"}
    (folder / "search.json").write_text(json.dumps(summary))
    source = search_page(folder).read_text("utf-8")
    assert "No trial beat the baseline uniform, which is the winner." in source
    assert source.count("<td>uniform</td>") == 2  # once beside the baselines, once among the trials


def test_a_folder_that_is_no_finished_search_is_a_one_line_error(make_search, tmp_path):
    with pytest.raises(UserError, match=r"no search.json.*--resume"):
        search_page(tmp_path)
    folder = make_search("a")
    (folder / "trials.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"trials.parquet: cannot be read"):
        search_page(folder)
