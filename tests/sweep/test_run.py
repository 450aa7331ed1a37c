"""A sweep at toy size: how settings are chosen, that budgets are kept, and that it goes on."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recsys_emb.config import RunConfig
from recsys_emb.errors import UserError
from recsys_emb.serving import load_artifact
from recsys_emb.sweep.cells import Cell
from recsys_emb.sweep.methods import FULL, chosen_methods
from recsys_emb.sweep.run import Sweep, check_folder
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.stop import StopMark, Stopped
from tests.sweep.conftest import BUDGETS, Swept


def test_settings_are_those_of_the_highest_validation_auc_of_one_seed(swept: Swept) -> None:
    first, second = swept.result(1), swept.result(2)
    assert first["trials"] == second["trials"]
    assert set(first["trials"]) == {"int8", "full, smaller D", "hash"}
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
        "full, smaller D": 0.5,  # one of five columns and its first-order one do not fit in a tenth
    }
    # The figure at the budget of the trial is the trial's.
    (row,) = [r for r in first["rows"] if r["method"] == "hash" and r["budget"] == 0.1]
    assert row["valid_auc"] == max(t["valid_auc"] for t in first["trials"]["hash"])


def test_budgets_are_kept_and_what_is_out_of_reach_has_its_least_bytes(swept: Swept) -> None:
    rows = swept.result(1)["rows"]
    full = next(r for r in rows if r["method"] == "full")["serving_bytes"]
    assert {(r["method"], r["budget"]) for r in rows if r["budget"]} == {
        (m, b) for m in ("drop_unseen", "full, smaller D", "hash", "plain hash", "tuned") for b in BUDGETS
    }
    for row in rows:
        assert "error" in row or row["serving_bytes"] <= (row["budget"] or 1) * full
    narrower = next(r for r in rows if r["method"] == "full, one column narrower")
    assert narrower["serving_bytes"] == full * 4 // 5  # 4 columns and a first-order one
    (out,) = [r for r in rows if "error" in r]
    assert (out["method"], out["budget"]) == ("full, smaller D", 0.1)
    assert out["least_bytes"] == full * 2 // 5  # one column and the first-order one
    assert f"least it can reach is {out['least_bytes']:,} bytes" in out["error"]
    needed = {r["method"]: r["vocabulary_bytes"] > 0 for r in rows if "auc" in r}
    assert {m for m, needs in needed.items() if not needs} == {"hash", "plain hash"}
    assert all(r["dense_bytes"] > 0 for r in rows if "auc" in r)
    assert all(0.5 < r["bayes_auc"] < 1 for r in rows if "auc" in r)  # planted data knows it


def test_figures_are_those_of_runs_and_of_artifacts_made_of_the_full_one(swept: Swept) -> None:
    runs = swept.sweep.runs / "2"
    row = next(r for r in swept.result(2)["rows"] if (r["method"], r["budget"]) == ("plain hash", 0.5))
    config, report = (
        load_run(runs / "plain_hash-0.5" / "choice-0").config,
        load_run(runs / "plain_hash-0.5/choice-0").report,
    )
    assert (config.seed, config.embedding.backend, config.embedding.budget) == (2, "hash", 0.5)
    assert row["auc"] == report["auc"]
    artifact = load_artifact(runs / "drop_unseen-0.5" / "choice-0")
    assert artifact.manifest.compact["method"] == "drop_unseen"
    assert artifact.manifest.config["embedding"]["backend"] == "full"
    assert artifact.manifest.config["seed"] == 2
    row = next(r for r in swept.result(2)["rows"] if (r["method"], r["budget"]) == ("tuned", 0.5))
    run = load_run(runs / "tuned-0.5" / "choice-0")
    assert (run.config.compact.method, run.config.compact.finetune.epochs, run.config.seed) == ("drop_unseen", 1, 2)
    assert row["auc"] == run.report["auc"]
    assert row["trainings"] == 2
    assert row["finetune"] == {"epochs": 1, "learning_rate": 0.01}


def test_each_choice_acts_on_its_training(tiny: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("hash: {choices: [{options: {balance: 0.25}, l2: 0.5}]}")
    (_, method) = chosen_methods(["hash"], tmp_path / "s.yaml")
    config = Cell(tiny, tmp_path, 3, method, 0.1, method.choices[0]).config()
    assert config.embedding.options.model_dump()["balance"] == 0.25
    assert config.training.l2_embedding == tiny.training.l2_embedding / 2
    assert config.model_copy(update={"embedding": tiny.embedding, "training": tiny.training, "seed": 1}) == tiny


@pytest.fixture
def copied(swept: Swept, tmp_path: Path) -> Swept:
    """The same, to be changed."""
    shutil.copytree(swept.sweep.results, tmp_path / "out")
    return replace(swept, sweep=replace(swept.sweep, results=tmp_path / "out", runs=tmp_path / "out" / "runs"), told=[])


def test_a_sweep_goes_on_where_it_was_killed(copied: Swept) -> None:
    """What stands in the results stays; a run that was not finished is continued, an artifact made anew."""
    before = copied.result(1)
    lost = [("drop_unseen", 0.1), ("hash", 0.5)]
    kept = [r for r in before["rows"] if (r["method"], r["budget"]) not in lost]
    (copied.sweep.results / "sweep-1.json").write_text(json.dumps({**before, "rows": kept}))
    (copied.sweep.runs / "1" / "drop_unseen-0.1" / "choice-0" / "artifact.json").unlink()
    told: list[Any] = []
    copied.sweep.seed(1, lambda seed, row: told.append((row["method"], row["budget"])), StopMark())
    assert told == lost
    rows = {(r["method"], r["budget"]): r for r in copied.result(1)["rows"]}
    assert rows == {(r["method"], r["budget"]): r for r in before["rows"]}


def test_results_of_earlier_days_are_gone_on_with(copied: Swept) -> None:
    """Files that name no config and no least bytes, and rows that name no settings."""
    before = copied.result(2)
    old = [{k: v for k, v in r.items() if k not in ("options", "l2", "least_bytes")} for r in before["rows"][:-1]]
    file = copied.sweep.results / "sweep-2.json"
    file.write_text(json.dumps({"command": "", "seed": 2, "rows": old}))
    copied.sweep.check()
    told: list[Any] = []
    copied.sweep.seed(2, lambda seed, row: told.append((row["method"], row["budget"])), StopMark())
    assert told == [(before["rows"][-1]["method"], before["rows"][-1]["budget"])]
    assert copied.result(2)["rows"] == [*old, before["rows"][-1]]


def test_a_sweep_stops_when_asked_and_keeps_what_it_has(tiny: RunConfig, tmp_path: Path) -> None:
    stop = StopMark()
    sweep = Sweep(tiny, chosen_methods(["hash"]), BUDGETS, tmp_path, tmp_path / "runs")

    def ask(seed: int, row: Any) -> None:
        stop.signal = signal.SIGTERM

    with pytest.raises(Stopped):
        sweep.seed(1, ask, stop)
    assert [row["method"] for row in json.loads((tmp_path / "sweep-1.json").read_text())["rows"]] == ["full"]


def test_a_folder_is_of_one_sweep(copied: Swept, tmp_path: Path) -> None:
    sweep = copied.sweep
    sweep.check()
    check_folder(sweep)
    longer = sweep.base.model_copy(update={"training": sweep.base.training.model_copy(update={"epochs": 2})})
    with pytest.raises(
        UserError, match=r"sweep-1.json: of a sweep with another config \(training.epochs: 1 there, 2 h"
    ):
        replace(sweep, base=longer).check()
    seeded = sweep.base.model_copy(update={"seed": 7})
    replace(sweep, base=seeded).check()  # seeds are the sweep's own
    (tmp_path / "s.yaml").write_text("plain hash: {uses: hash, choices: [{options: {balance: 1.0}}]}")
    other = chosen_methods(["plain hash"], tmp_path / "s.yaml")
    with pytest.raises(UserError, match=r"has plain hash with settings that are no choice now \(default\)"):
        replace(sweep, methods=other).check()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "notes.txt").touch()
    with pytest.raises(UserError, match=r"holds notes\.txt, but no sweep to continue"):
        check_folder(replace(sweep, results=elsewhere))


def test_what_cannot_be_swept_is_refused_before_a_training(tiny: RunConfig, tmp_path: Path) -> None:
    sweep = Sweep(tiny, (FULL,), (1.5,), tmp_path, tmp_path / "runs")
    with pytest.raises(UserError, match=r"--budgets 1.5: allowed: ratios"):
        sweep.check()
