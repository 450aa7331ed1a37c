"""The sweep at toy size: what it compares, how options are chosen, that it goes on, and what its tables say."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from recsys_emb.embeddings.base import backend_registry
from recsys_emb.embeddings.budget import backend_config
from recsys_emb.embeddings.posttraining import posttraining_registry

FOLDER = Path(__file__).parents[2] / "experiments"
EXPERIMENT = "tiny/deepfm"
BUDGETS = (0.5, 0.1)
CHOSEN = ("full", "full, one column narrower", "int8", "drop_unseen", "full, smaller D", "hash")


@pytest.fixture(scope="module")
def scripts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield {name: importlib.import_module(name) for name in ("sweep", "sweep_methods", "sweep_tables")}


@pytest.fixture(scope="module")
def swept(scripts: dict[str, ModuleType], prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The scripts, and a folder in which they have swept two seeds of a tiny experiment."""
    folder = tmp_path_factory.mktemp("sweep")
    config = {
        "data": {"path": str(prepared)},
        "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [8]},
        "training": {"epochs": 1, "batch_size": 600, "learning_rate": 0.01, "precision": "fp32"},
    }
    (folder / "tiny").mkdir()
    (folder / "tiny" / "deepfm.yaml").write_text(yaml.safe_dump(config))
    sweep, tables = scripts["sweep"], scripts["sweep_tables"]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"HERE": folder, "RESULTS": folder / "results", "RUNS": folder / "runs"}.items():
            patch.setattr(sweep, name, value)
        patch.setattr(tables, "RESULTS", folder / "results")
        patch.setattr(tables, "EXPERIMENTS", (EXPERIMENT,))
        methods = [m for m in scripts["sweep_methods"].METHODS if m.name in CHOSEN]
        patch.setattr(tables, "METHODS", methods)
        for seed in (2, 1):  # the seed of the trials comes second
            sweep.sweep(EXPERIMENT, seed, BUDGETS, methods)
        tables.write_tables()
        yield scripts, folder, methods


def result(folder: Path, seed: int) -> dict[str, Any]:
    return json.loads((folder / "results" / f"tiny-deepfm-{seed}.json").read_text())


def test_every_method_is_swept_with_options_that_it_has(scripts: dict[str, ModuleType]) -> None:
    methods = scripts["sweep_methods"].METHODS
    assert len({m.name for m in methods}) == len(methods)
    for kind, registry in (("trained", backend_registry), ("after", posttraining_registry)):
        mine = [m for m in methods if m.kind == kind]
        assert {m.uses for m in mine} == set(registry.names())
        for method in mine:
            assert len(method.choices) <= 3
            for choice in method.choices:
                backend_config(registry.get(method.uses), choice.options)


def test_options_are_those_of_the_highest_validation_auc_of_one_seed(swept: Any) -> None:
    _, folder, methods = swept
    first, second = result(folder, 1), result(folder, 2)
    assert first["trials"] == second["trials"]
    assert set(first["trials"]) == {m.name for m in methods if len(m.choices) > 1}
    for method, trials in first["trials"].items():
        assert {t["seed"] for t in trials} == {1}
        assert len({t["budget"] for t in trials}) == 1
        scores = [t.get("valid_auc", 0.0) for t in trials]
        taken = trials[scores.index(max(scores))]
        for row in (*first["rows"], *second["rows"]):
            if row["method"] == method:
                assert (row["options"], row["l2"]) == (taken["options"], taken["l2"])
    assert {m: t[0]["budget"] for m, t in first["trials"].items()} == {
        "int8": None,
        "hash": 0.1,
        "full, smaller D": 0.5,  # one of five columns and its first-order one do not fit in a quarter
    }
    # The figure at the budget of the trial is the trial's.
    (row,) = [r for r in first["rows"] if r["method"] == "hash" and r["budget"] == 0.1]
    assert row["valid_auc"] == max(t["valid_auc"] for t in first["trials"]["hash"])


def test_budgets_are_kept_and_what_is_out_of_reach_says_so(swept: Any) -> None:
    _, folder, _ = swept
    rows = result(folder, 1)["rows"]
    full = next(r for r in rows if r["method"] == "full")["serving_bytes"]
    assert {(r["method"], r["budget"]) for r in rows if r["budget"]} == {
        (m, b) for m in ("drop_unseen", "full, smaller D", "hash") for b in BUDGETS
    }
    for row in rows:
        assert "error" in row or row["serving_bytes"] <= (row["budget"] or 1) * full
    narrower = next(r for r in rows if r["method"] == "full, one column narrower")
    assert narrower["serving_bytes"] == full * 4 // 5  # 4 columns and a first-order one
    errors = {(r["method"], r["budget"]) for r in rows if "error" in r}
    assert errors == {("full, smaller D", 0.1)}
    needed = {r["method"]: r["vocabulary_bytes"] > 0 for r in rows if "auc" in r}
    assert {m for m, needs in needed.items() if not needs} == {"hash"}


def test_a_sweep_goes_on_where_it_was_stopped(swept: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts, folder, methods = swept
    sweep = scripts["sweep"]
    before = result(folder, 1)
    file = folder / "results" / "tiny-deepfm-1.json"
    gone = before["rows"][-1]
    file.write_text(json.dumps({**before, "rows": before["rows"][:-1]}))
    asked = []
    monkeypatch.setattr(sweep, "figures", lambda point: asked.append(point) or {"auc": gone["auc"]})
    sweep.sweep(EXPERIMENT, 1, BUDGETS, methods)
    assert [(p.method.name, p.budget) for p in asked] == [(gone["method"], gone["budget"])]
    file.write_text(json.dumps(before))


def test_tables_show_spreads_bytes_and_trials(swept: Any) -> None:
    _, folder, _ = swept
    text = (folder / "results" / "README.md").read_text()
    rows = [r for seed in (1, 2) for r in result(folder, seed)["rows"]]
    hashed = [r for r in rows if r["method"] == "hash" and r["budget"] == 0.5]
    mean = sum(r["auc"] for r in hashed) / 2
    spread = abs(hashed[0]["auc"] - hashed[1]["auc"]) / 2**0.5  # the sample standard deviation of two
    full = next(r for r in rows if r["method"] == "full")
    ratio = hashed[0]["serving_bytes"] / full["serving_bytes"]
    assert f"| hash | - | {mean:.4f} ± {spread:.4f} ({ratio:.3f}) |" in text
    alone, both = full["serving_bytes"] / 1e6, (full["serving_bytes"] + full["vocabulary_bytes"]) / 1e6
    assert full["served_bytes"] == full["serving_bytes"] + full["vocabulary_bytes"] + full["dense_bytes"]
    assert full["dense_bytes"] > 0
    assert f"| full | {alone:.3f} / {both:.3f} / {full['served_bytes'] / 1e6:.3f} | - |" in text
    assert "| full, smaller D | - |" in text
    assert text.count("out of reach") == 2  # in two tables
    assert text.count("**") == 2 * len(result(folder, 1)["trials"])
    for plot in ("tiny-deepfm.png", "tiny-deepfm-with-vocabularies.png"):
        assert (folder / "results" / plot).stat().st_size > 5000
        assert f"({plot})" in text
