"""What people read of a sweep: Markdown, CSV, plots and the page, against the figures in its files."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import polars as pl
import pytest

from recsys_emb.errors import UserError
from recsys_emb.sweep.page import sweep_page
from recsys_emb.sweep.results import by_method, points, read_results
from recsys_emb.sweep.tables import budget_name, method_name
from tests.report.conftest import Page
from tests.sweep.conftest import Swept


def test_markdown_has_spreads_bytes_and_trials(swept: Swept) -> None:
    text = (swept.sweep.results / "sweep.md").read_text()
    rows = [r for seed in (1, 2) for r in swept.result(seed)["rows"]]
    hashed = [r for r in rows if r["method"] == "hash" and r["budget"] == 0.5]
    mean = sum(r["auc"] for r in hashed) / 2
    spread = abs(hashed[0]["auc"] - hashed[1]["auc"]) / 2**0.5  # the sample standard deviation of two
    full = next(r for r in rows if r["method"] == "full")
    ratio = hashed[0]["serving_bytes"] / full["serving_bytes"]
    assert f"| hash | - | {mean:.4f} ± {spread:.4f} ({ratio:.3f}) |" in text
    sizes = [full["serving_bytes"], full["vocabulary_bytes"], full["dense_bytes"]]
    assert f"| full | {sizes[0] / 1e6:.3f} / {sum(sizes[:2]) / 1e6:.3f} / {sum(sizes) / 1e6:.3f} | - |" in text
    assert text.count("out of reach (least ") == 2  # in two tables
    assert text.count("**") == 2 * len(swept.result(1)["trials"])
    assert (swept.sweep.results / "sweep.png").stat().st_size > 5000


def test_csv_has_a_line_a_method_and_budget(swept: Swept) -> None:
    frame = pl.read_csv(swept.sweep.results / "sweep.csv")
    rows = [swept.result(seed)["rows"] for seed in (1, 2)]
    assert len(frame) == len(rows[0])
    for line in frame.to_dicts():
        own = [next(r for r in of if (r["method"], r["budget"]) == (line["method"], line["budget"])) for of in rows]
        if "error" in own[0]:
            assert (line["seeds"], line["auc"], line["least_bytes"]) == (0, None, own[0]["least_bytes"])
            continue
        full = [next(r for r in of if r["method"] == "full") for of in rows]
        lost = [f["auc"] - r["auc"] for f, r in zip(full, own)]
        assert line["auc"] == pytest.approx(statistics.mean(r["auc"] for r in own))
        assert line["lost"] == pytest.approx(statistics.mean(lost), abs=1e-12)
        assert line["lost_std"] == pytest.approx(statistics.stdev(lost), abs=1e-12)
        served = [r["serving_bytes"] + r["vocabulary_bytes"] + r["dense_bytes"] for r in own]
        assert line["served_bytes"] == statistics.mean(served)
        assert line["ratio"] == pytest.approx(own[0]["serving_bytes"] / full[0]["serving_bytes"], abs=1e-3)


def test_points_say_of_how_many_seeds_they_are(swept: Swept) -> None:
    one, two = swept.result(1), swept.result(2)
    two["rows"] = [r for r in two["rows"] if r["method"] != "int8"]
    of = {(p["method"], p["budget"]): (p["seeds"], p["of_seeds"]) for p in points([one, two])}
    assert of["int8", None] == (1, 1)
    assert of["hash", 0.5] == (2, 2)
    assert of["full, smaller D", 0.1] == (0, 2)
    assert next(iter(of))[0] == "full"


def test_the_page_shows_every_point_and_every_trial(swept: Swept) -> None:
    page = Page(swept.sweep.results / "report.html")
    page.assert_self_contained()
    rows = points(read_results(swept.sweep.results)["sweep"])
    at, *figures = page.table("Figures")
    for line, row in zip(figures, rows, strict=True):
        assert line[at["Method"]]["text"] == row["method"]
        assert line[at["Seeds"]]["text"] == str(row["seeds"])
        assert (f"{row['auc']:.4f}" if row["auc"] is not None else "out of reach") in line[at["AUC"]]["text"]
        network = line[at["Network (MB)"]]["text"]
        assert network == ("–" if row["auc"] is None else f"{row['dense_bytes'] / 1e6:.6f}")
    at, *trials = page.table("Settings tried")
    assert len(trials) == sum(map(len, swept.result(1)["trials"].values()))
    assert sum(line[at["Taken"]]["text"] == "yes" for line in trials) == len(swept.result(1)["trials"])
    at, *grid = page.table("Test AUC by budget")
    assert [line[0]["text"] for line in grid] == list(map(method_name, by_method(rows).values()))
    assert set(at) == {"Method", "own size", "1/2", "1/10"}
    assert page.source.count("<svg") == 2


def test_old_results_without_settings_and_vocabularies_are_shown(tmp_path: Path) -> None:
    row = {"method": "full", "budget": None, "auc": 0.8, "serving_bytes": 1000, "ratio": 1.0}
    small = {"method": "gone", "budget": 0.05, "auc": 0.7, "serving_bytes": 40, "ratio": 0.04}
    (tmp_path / "ml-deepfm-1.json").write_text(json.dumps({"seed": 1, "rows": [small, row]}))
    ((name, results),) = read_results(tmp_path).items()
    assert [(p["method"], p["lost"]) for p in points(results)] == [("full", 0.0), ("gone", pytest.approx(0.1))]
    assert name == "ml-deepfm"
    text = sweep_page(name, results)
    assert text.count("<svg") == 1
    assert "Config" not in text


def test_a_folder_without_a_sweep_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no results of a sweep"):
        read_results(tmp_path)
    (tmp_path / "x-1.json").write_text('{"seed": 1}')
    with pytest.raises(UserError, match=r"x-1.json: no result of a sweep"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("budget", "name"), [(0.5, "1/2"), (0.005, "1/200"), (0.3, "0.3"), (None, "own size"), (1.0, "1/1")]
)
def test_budgets_are_named(budget: float | None, name: str) -> None:
    assert budget_name(budget) == name
