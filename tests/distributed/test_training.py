"""Several processes give what one gives: losses, figures, checkpoints, artifacts, for every backend."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from recsys_emb.config import parse_config
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.distributed.plan import plan_run
from recsys_emb.distributed.workload import of_dataset
from recsys_emb.serving import write_artifact
from recsys_emb.training.checkpoint import Checkpoints
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.run_files import PREDICTIONS
from recsys_emb.training.stored_predictions import StoredPredictions
from tests.distributed.cases import BACKENDS, SEARCHING, STEPS, before_last_training, config
from tests.distributed.ranks import Run, alone, one_run, run_all, seen


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 weighted rows with a history and tags."""
    folder = tmp_path_factory.mktemp("histories")
    random = np.random.default_rng(1)
    n = 300
    pl.DataFrame(
        {
            "clicked": random.integers(0, 2, n),
            "item": [f"i{x}" for x in random.integers(0, 40, n)],
            "tags": ["|".join(f"t{x}" for x in random.integers(0, 9, k)) for k in random.integers(0, 4, n)],
            "history": [" ".join(f"i{x}" for x in random.integers(0, 40, k)) for k in random.integers(0, 5, n)],
            "part": random.choice(["train", "valid", "test"], n),
            "weight": random.random(n),
        }
    ).write_csv(folder / "rows.csv")
    schema = {
        "label": "clicked",
        "categorical": ["item"],
        "multi_valued": [{"name": "tags", "separator": "|"}],
        "sequences": [{"name": "history", "target": "item", "separator": " "}],
        "split": {"column": "part"},
        "weight": "weight",
    }
    (folder / "schema.yaml").write_text(json.dumps(schema))
    prepare(make_source("table", folder / "rows.csv", folder / "schema.yaml"), folder / "data", name="histories")
    return folder / "data"


def cases(prepared: Path, histories: Path) -> dict[str, dict[str, Any]]:
    din = {"name": "din", "embedding_dim": 4}
    return {
        **{backend: config(prepared, backend) for backend in BACKENDS},
        **{rule: config(prepared, embedding_optimizer=rule) for rule in ("rowwise_adagrad", "sgd", "dense_adam")},
        "clipped": config(prepared, "qr", max_grad_norm=0.1, l2_dense=0.01),
        # Dice normalises over the whole batch.
        "din": config(histories, "hash", din, batch_size=33),
    }


CASES = sorted([*BACKENDS, "rowwise_adagrad", "sgd", "dense_adam", "clipped", "din"])


@pytest.fixture(scope="module")
def folder(prepared: Path, histories: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case on one process (``1-CASE``) and on two; runs stopped and continued on other numbers of processes."""
    out = tmp_path_factory.mktemp("runs")
    everything = cases(prepared, histories)
    stopped = {name: everything[name] for name in ("full", "mixed_dim")}
    for name, of in everything.items():
        alone(Run(of, out / f"1-{name}", finish=name == "qr"))
    for name in SEARCHING:
        alone(Run(config(prepared, name), out / f"1-{name}"))
    for name, of in stopped.items():
        alone(Run(of, out / f"1to2-{name}", stop_at=6))
    copies = {name: before_last_training(out / f"1-{name}", out / f"2-last-{name}") for name in SEARCHING}
    run_all(
        2,
        [
            *(Run(of, out / f"2-{name}", finish=name == "qr") for name, of in everything.items()),
            *(Run(of, out / f"2to{w}-{name}", stop_at=6) for name, of in stopped.items() for w in (1, 3)),
            *(Run(of, out / f"1to2-{name}", resume=True) for name, of in stopped.items()),
            *(Run(config(prepared, name), out / f"2-{name}") for name in SEARCHING),
            *(Run(config(prepared, name), copy, resume=True) for name, copy in copies.items()),
            Run(config(prepared, "matryoshka", options={}), out / "2-widths"),
        ],
    )
    for name, of in stopped.items():
        alone(Run(of, out / f"2to1-{name}", resume=True))
    run_all(
        3,
        [
            Run(everything["full"], out / "3-full"),
            Run(everything["din"], out / "3-din"),
            *(Run(of, out / f"2to3-{name}", resume=True) for name, of in stopped.items()),
        ],
    )
    return out


def same(one: Path, several: Path) -> None:
    """Every evaluation, every figure and the weights are equal to fp32 rounding."""
    a, b = (load_run(path).metrics() for path in (one, several))
    for x, y in zip(a, b, strict=True):
        assert (x["event"], x["step"], x["epoch"]) == (y["event"], y["step"], y["epoch"])
        for key in x.keys() - {"event", "stage", "step", "epoch", "samples_per_second"}:
            wanted = x[key] and pytest.approx(x[key], rel=1e-4, abs=2e-4 if "auc" in key else 1e-5)
            assert y[key] == wanted
    a, b = (seen(path)["report"] for path in (one, several))
    for key in ("serving_bytes", "full_bytes", "tables", "parameters", "epochs", "steps", "best_step"):
        assert a[key] == b[key]
    best = [Checkpoints(load_run(path).checkpoints("train")).best() for path in (one, several)]
    weights, others = (load_file(path / "model.safetensors") for path in best if path is not None)
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(others[name], weight, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_what_one_gives(folder: Path, case: str) -> None:
    same(folder / f"1-{case}", folder / f"2-{case}")
    one, two = (seen(folder / f"{w}-{case}")["losses"] for w in (1, 2))
    assert len(one) == STEPS
    assert two == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("case", SEARCHING)
def test_what_comes_after_a_search_trains_on_two_processes_as_on_one(folder: Path, case: str) -> None:
    one, two = (seen(folder / f"{name}-{case}")["losses"] for name in ("1", "2-last"))
    assert len(two) == len(one) - STEPS
    assert two == pytest.approx(one[STEPS:], rel=1e-4)


@pytest.mark.parametrize("case", ["full", "din"])
def test_three_processes_of_which_one_has_no_row_of_a_batch(folder: Path, case: str) -> None:
    same(folder / f"1-{case}", folder / f"3-{case}")


@pytest.mark.parametrize("case", ["full", "mixed_dim"])
@pytest.mark.parametrize("change", ["2to1", "2to3", "1to2"])
def test_a_run_continues_on_another_number_of_processes(folder: Path, case: str, change: str) -> None:
    same(folder / f"1-{case}", folder / f"{change}-{case}")


def test_figures_and_artifact_are_the_same(folder: Path, tmp_path: Path) -> None:
    one, two = (load_run(folder / f"{w}-qr") for w in (1, 2))
    assert (one.report["processes"], two.report["processes"]) == (1, 2)
    for key in ("auc", "logloss", "ne", "calibration"):
        assert two.report[key] == pytest.approx(one.report[key], rel=1e-4)
    of_one, of_two = (StoredPredictions.load(run.path / PREDICTIONS) for run in (one, two))
    assert of_one is not None
    assert of_two is not None
    assert of_two.same_rows(of_one)  # in the split's order, whoever had the rows
    np.testing.assert_allclose(of_two.logits, of_one.logits, rtol=1e-3, atol=1e-4)
    reports = [write_artifact(run, tmp_path / run.path.name, evaluate=False) for run in (one, two)]
    assert reports[0]["serving_bytes"] == reports[1]["serving_bytes"] == two.report["serving_bytes"]
    for file in ("embedding.safetensors", "dense.safetensors"):
        arrays, others = (load_file(tmp_path / run.path.name / file) for run in (one, two))
        for name in arrays:
            torch.testing.assert_close(others[name], arrays[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["full", "mixed_dim", "multi_hash", "rowwise_adagrad"])
def test_plan_says_what_two_processes_take(folder: Path, prepared: Path, histories: Path, case: str) -> None:
    run = parse_config(cases(prepared, histories)[case])
    made = plan_run(run, of_dataset(run.data.open()), devices=2, memory=10**9)
    two = seen(folder / f"2-{case}")
    per_device = made["bytes_per_device"]
    tables = per_device["table_weights"] + per_device["table_optimizer"]
    # Weights and state of both; Adam's step counters and the uneven last row are not in the plan.
    dense = per_device["other_weights"] // 2 + per_device["other_optimizer"]  # other_weights counts gradients, too
    assert 2 * (tables + dense) == pytest.approx(two["report"]["training_bytes"], rel=0.03)
    # The plan looks at one device's part of the first batch, the run counts all its lookups.
    planned = made["sent_per_step"]["ids"] / 8
    assert planned == pytest.approx(two["asked"] / 12, rel=0.1)


def test_random_widths_train_too(folder: Path) -> None:
    report = seen(folder / "2-widths")["report"]
    assert report["steps"] == 12
    assert 0.4 < report["valid_auc"] < 1


@pytest.mark.parametrize("case", SEARCHING)
def test_two_processes_come_as_far_as_a_search_which_asks_for_one(folder: Path, case: str) -> None:
    one, two = (seen(folder / f"{w}-{case}") for w in (1, 2))
    assert len(two["losses"]) == STEPS
    if case != "optembed":  # every process draws widths of its own
        assert two["losses"] == pytest.approx(one["losses"][:STEPS], rel=1e-4)
    first, then = list(json.loads((folder / f"1-{case}/embedding.json").read_text()))[:2]
    assert f"stage '{then}' of {case} needs whole tables" in two["report"]["error"]
    assert "\n" not in two["report"]["error"]
    assert (folder / f"2-{case}/checkpoints/{first}/stage.json").is_file()


def test_a_search_in_between_runs_on_one_process(folder: Path, prepared: Path) -> None:
    shutil.copytree(folder / "2-optembed", folder / "continued")
    report = one_run(Run(config(prepared, "optembed"), folder / "continued", resume=True))["report"]
    assert [s["name"] for s in report["stages"]] == ["supernet", "search", "retrain"]
