"""Whole runs on a tiny dataset: the folder, resuming, evaluating."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import log_loss, roc_auc_score

from recsys_emb.config import parse_config
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.training import run as running
from recsys_emb.training.checkpoint import Checkpoints
from recsys_emb.training.predict import predict
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import RunDir, load_run
from recsys_emb.training.trainer import TrainingState
from tests.training.conftest import config_for


class Killed(Exception):
    pass


class KilledAt(Silent):
    """Stands for a process that dies after a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        if progress.step == self.at:
            raise Killed


class Evaluations(Silent):
    def __init__(self) -> None:
        self.seen: list[tuple[int, float, bool]] = []

    def evaluation(self, progress: TrainingState, figures: Mapping[str, float | None], best: bool) -> None:
        self.seen.append((progress.step, progress.learning_rate, best))


class Warnings(Silent):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def warn(self, message: str) -> None:
        self.seen.append(message)


TIMES = ("train_seconds", "samples_per_second", "peak_rss_bytes", "stages")


def test_a_run_folder_explains_itself(prepared: Path, tmp_path: Path) -> None:
    config = config_for(prepared)
    report = running.train(config, tmp_path / "run", Silent())
    run = load_run(tmp_path / "run")
    assert run.config == config.at_state_of(open_dataset(prepared))
    assert run.report == json.loads((tmp_path / "run/report.json").read_text()) == report
    for name in ("env.json", "schema.json", "embedding.json", "metrics.jsonl", "DONE"):
        assert (run.path / name).is_file()
    assert list((run.path / "tensorboard").rglob("events.*"))
    keys = (
        "auc logloss ne calibration gauc serving_bytes full_bytes ratio training_bytes peak_rss_bytes "
        "samples_per_second train_seconds epochs model backend dataset seed bayes_auc stages valid_auc"
    )
    assert set(keys.split()) <= set(report)
    evaluations = [m for m in run.metrics() if m["event"] == "eval"]
    assert [m["epoch"] for m in evaluations] == list(range(1, report["epochs"] + 1))
    assert max(m["auc"] for m in evaluations) == report["valid_auc"]


def test_reported_bytes_are_those_of_the_tensors(prepared: Path, tmp_path: Path) -> None:
    report = running.train(config_for(prepared, epochs=1), tmp_path / "run", Silent())
    ids = sum(open_dataset(prepared).schema.vocabularies.values())
    assert report["serving_bytes"] == report["full_bytes"] == 4 * ids * (4 + 1)
    folder = next((tmp_path / "run/checkpoints/train").glob("step-*"))
    model = load_file(folder / "model.safetensors")
    optimizer = load_file(folder / "optimizer.safetensors")
    optimizer.pop("random_state")
    saved = sum(t.nbytes for t in (*model.values(), *optimizer.values()))
    assert report["training_bytes"] == saved
    assert sum(t["bytes"] for t in report["tables"]) == report["serving_bytes"]


def test_metrics_of_a_run_are_scikit_learns(prepared: Path, tmp_path: Path) -> None:
    report = running.train(config_for(prepared, epochs=1), tmp_path / "run", Silent())
    run = load_run(tmp_path / "run")
    model, precision = running.restore(run)
    dataset = open_dataset(prepared)
    split = dataset.split("test")
    out = predict(model, BatchLoader(split, dataset.schema, 100), precision)
    probabilities = out.logits.double().sigmoid().numpy()
    labels = split.labels.numpy()
    assert report["auc"] == pytest.approx(roc_auc_score(labels, probabilities), abs=1e-9)
    assert report["logloss"] == pytest.approx(log_loss(labels, probabilities), abs=1e-6)
    assert report["calibration"] == pytest.approx(probabilities.mean() / labels.mean(), abs=1e-6)
    assert report["bayes_auc"] == dataset.bayes["test"]["auc"]


def test_a_run_without_its_test_figures_is_finished_later(prepared: Path, tmp_path: Path) -> None:
    config = config_for(prepared)
    whole = running.train(config, tmp_path / "whole", Silent())
    known = running.train(config, tmp_path / "run", Silent(), test=False)
    assert "auc" not in known
    assert {k: v for k, v in known.items() if k not in TIMES}.items() <= whole.items()
    assert not load_run(tmp_path / "run").done
    finished = running.train(config, tmp_path / "run", Silent(), resume=True)
    assert finished["auc"] == whole["auc"]
    assert finished["train_seconds"] == known["train_seconds"]  # nothing was trained again
    assert load_run(tmp_path / "run").done


def test_same_seed_same_run(prepared: Path, tmp_path: Path) -> None:
    a, b = (running.train(config_for(prepared), tmp_path / n, Silent()) for n in "ab")
    assert {k: v for k, v in a.items() if k not in TIMES} == {k: v for k, v in b.items() if k not in TIMES}


@pytest.mark.parametrize(("kill_at", "schedule"), [(1, "plateau"), (5, "plateau"), (14, "linear"), (21, "plateau")])
def test_a_killed_run_continues_to_the_same_report(prepared: Path, tmp_path: Path, kill_at: int, schedule: str) -> None:
    """Batches of 256 of 2,400 rows: evaluations after steps 5, 10, ...; epochs end after 10."""
    config = config_for(prepared, eval_every=5, patience=9, lr_schedule=schedule)
    whole = running.train(config, tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        running.train(config, tmp_path / "killed", KilledAt(kill_at))
    resumed = running.train(config, tmp_path / "killed", Silent(), resume=True)
    assert {k: v for k, v in whole.items() if k not in TIMES} == {k: v for k, v in resumed.items() if k not in TIMES}

    def events(name: str) -> list[tuple[Any, ...]]:
        return [(m["event"], m["step"], m.get("loss", m.get("auc"))) for m in load_run(tmp_path / name).metrics()]

    assert events("killed") == events("whole")


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "sgd", "dense_adam"])
def test_every_optimizer_resumes(prepared: Path, tmp_path: Path, optimizer: str) -> None:
    config = config_for(prepared, embedding_optimizer=optimizer, epochs=2)
    whole = running.train(config, tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        running.train(config, tmp_path / "killed", KilledAt(15))
    resumed = running.train(config, tmp_path / "killed", Silent(), resume=True)
    assert resumed["logloss"] == whole["logloss"]


def test_resume_of_another_config_is_refused(prepared: Path, tmp_path: Path) -> None:
    running.train(config_for(prepared, epochs=1), tmp_path / "run", Silent())
    with pytest.raises(UserError, match="another config"):
        running.train(config_for(prepared, epochs=2), tmp_path / "run", Silent(), resume=True)


def test_an_existing_folder_is_refused_and_left_alone(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists already; continue it with --resume"):
        running.train(config_for(prepared), tmp_path, Silent())
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_evaluations_every_n_steps_and_at_the_end(prepared: Path, tmp_path: Path) -> None:
    reporter = Evaluations()
    running.train(config_for(prepared, eval_every=4, max_steps=11, patience=99), tmp_path / "run", reporter)
    assert [step for step, _, _ in reporter.seen] == [4, 8, 11]


def test_the_best_weights_are_kept_not_the_last(prepared: Path, tmp_path: Path) -> None:
    """A learning rate that overfits at once: the report's validation AUC is the best evaluation's."""
    config = config_for(prepared, epochs=6, learning_rate=0.05, patience=9, lr_drop=1.0)
    report = running.train(config, tmp_path / "run", Silent())
    run = load_run(tmp_path / "run")
    aucs = [m["auc"] for m in run.metrics() if m["event"] == "eval"]
    assert aucs[-1] < max(aucs)
    assert running.evaluate(run, "valid")["auc"] == report["valid_auc"] == max(aucs)
    assert (run.path / f"checkpoints/train/step-{report['best_step']:08d}").is_dir()


def pop(*names: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tree: [tree.pop(name) for name in names]


def only(*prefixes: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tree: [tree.pop(name) for name in list(tree) if not name.startswith(prefixes)]


def longer(name: str) -> Callable[[dict[str, Any]], Any]:
    return lambda tree: tree.update({name: torch.cat([tree[name], tree[name]])})


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "model",
            pop("embedding.backend.table.weight"),
            "10: does not fit the run's config .*Missing",
        ),
        ("model", longer("embedding.backend.table.weight"), "does not fit the run's config .*size mismatch"),
        ("optimizer", pop("random_state"), r"optimizer.safetensors: does not fit the run's config \('random_state"),
        (
            "optimizer",
            longer("table.0.exp_avg"),
            r"optimizer.safetensors: does not fit .* has shape \[\d+, 5\], expected",
        ),
        ("optimizer", pop("table.0.exp_avg"), r"optimizer.safetensors: does not fit the run's config \('exp_avg'\)"),
        ("optimizer", longer("dense.0.exp_avg"), r"does not fit .* \(dense.0.exp_avg has shape"),
        ("optimizer", only("table", "random_state"), "does not fit .* .no state of weights outside tables"),
        ("state", pop("flat"), "state.json: flat is missing or unknown; go on with the version that wrote it"),
        ("state", lambda tree: tree.update(more=1), "state.json: more is missing or unknown"),
        ("state", lambda tree: tree.update(best_auc=tree.pop("best_score")), "state.json: best_auc is missing or unk"),
        ("state", lambda tree: tree.update(step="x"), "state.json: step: "),
        ("state", lambda tree: tree.update(batch=10), "state.json: batch 10 of 10"),
    ],
)
def test_a_checkpoint_that_fits_nothing_is_refused_in_one_line(
    prepared: Path, tmp_path: Path, file: str, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """Its checksums are right: another version, or a forger, wrote it."""
    config = config_for(prepared)
    with pytest.raises(Killed):
        running.train(config, tmp_path / "run", KilledAt(14))
    written = Checkpoints(tmp_path / "run/checkpoints/train")
    folder = written.folder(10)
    trees = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "optimizer")}
    trees["state"] = json.loads((folder / "state.json").read_text())
    change(trees[file])
    written.save(10, trees["model"], trees["optimizer"], trees["state"], 10)
    with pytest.raises(UserError, match=message):
        running.train(config, tmp_path / "run", Silent(), resume=True)


def test_evaluate_on_another_dataset_needs_the_same_fields(prepared: Path, tmp_path: Path) -> None:
    running.train(config_for(prepared, epochs=1), tmp_path / "run", Silent())
    prepare(make_source("synthetic", options={"rows": 2000, "ids": 500, "seed": 4}), tmp_path / "other")
    with pytest.raises(UserError, match=r"was not prepared like the dataset that .*: vocabulary .* ids, not .*--like"):
        running.evaluate(load_run(tmp_path / "run"), data=tmp_path / "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "din"}}, "din needs a sequence field"),
        ({"embedding": {"backend": "full", "budget": 0.5}}, "full cannot fit in"),
        ({"data": {"path": "/nowhere/at/all"}}, "does not exist"),
    ],
)
def test_impossible_runs_are_refused_before_a_folder_is_made(
    prepared: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    tree = {"data": {"path": str(prepared)}, "model": {"name": "lr"}, **change}
    with pytest.raises(UserError, match=message):
        running.train(parse_config(tree), tmp_path / "run", Silent())
    assert not (tmp_path / "run").exists()


def test_a_dataset_prepared_anew_with_other_ids_is_refused(tmp_path: Path) -> None:
    """Same fields and sizes, other vocabularies: ids would mean other values."""

    def data(values: str, out: Path) -> Path:
        rows = [f"{i % 2},{values[i % 3]},{'train' if i < 20 else ('valid', 'test')[i // 2 % 2]}" for i in range(40)]
        raw = tmp_path / f"{values}.csv"
        raw.write_text("y,letter,part\n" + "\n".join(rows) + "\n")
        options = {"label": "y", "categorical": ["letter"], "split": {"column": "part"}}
        prepare(make_source("table", raw, options=options), out, overwrite=True)
        return out

    folder = data("abc", tmp_path / "data")
    config = config_for(folder, {"name": "lr"}, epochs=1)
    running.train(config, tmp_path / "run", Silent())
    assert running.evaluate(load_run(tmp_path / "run"))["rows"] == 10
    data("xyz", folder)
    with pytest.raises(UserError, match="vocabulary 'letter' holds other values"):
        running.evaluate(load_run(tmp_path / "run"))
    with pytest.raises(UserError, match="vocabulary 'letter' holds other values"):
        running.train(config, tmp_path / "run", Silent(), resume=True)


@pytest.mark.parametrize("damaged", [[10], [5], [5, 10]])
def test_damaged_checkpoints_are_passed_over(prepared: Path, tmp_path: Path, damaged: list[int]) -> None:
    """Killed after step 12, with evaluations after 5 and 10: the run goes on from 5, or begins anew."""
    config = config_for(prepared, epochs=2, eval_every=5, lr_drop=1.0, patience=9)
    whole = running.train(config, tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        running.train(config, tmp_path / "killed", KilledAt(12))
    for step in damaged:
        with open(tmp_path / f"killed/checkpoints/train/step-{step:08d}/model.safetensors", "r+b") as file:
            file.truncate(100)
    resumed = running.train(config, tmp_path / "killed", Silent(), resume=True)
    assert resumed["logloss"] == whole["logloss"]


def test_damaged_weights_of_a_finished_run_are_not_replaced_by_others(prepared: Path, tmp_path: Path) -> None:
    running.train(config_for(prepared, epochs=2), tmp_path / "run", Silent())
    for file in (tmp_path / "run/checkpoints").rglob("model.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"model\.safetensors: damaged"):
        running.evaluate(load_run(tmp_path / "run"))


def test_a_run_without_a_checkpoint_says_the_whole_command(prepared: Path, tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "run", config_for(prepared), open_dataset(prepared))
    with pytest.raises(UserError, match=f"no checkpoint yet; .*train --out {run.path} --resume"):
        running.restore(run)


@pytest.mark.parametrize(
    ("training", "warned"),
    [
        ({"epochs": 2}, True),
        ({"epochs": 2, "eval_every": 5}, False),
        ({"epochs": 2, "batch_size": 64}, False),  # more than 20 steps an epoch
        ({"epochs": 1}, False),  # one evaluation decides nothing
    ],
)
def test_short_epochs_are_warned_of(prepared: Path, tmp_path: Path, training: dict[str, Any], warned: bool) -> None:
    config = config_for(prepared, {"name": "lr"}, **training)
    steps = -(-len(open_dataset(prepared).split("train")) // config.training.batch_size)
    assert (steps < 20) is ("batch_size" not in training)
    told = Warnings()
    running.train(config, tmp_path / "run", told)
    assert [m.startswith(f"an epoch is only {steps} steps, and") for m in told.seen] == [True] * warned
    running.train(config, tmp_path / "run", told, resume=True)
    assert len(told.seen) == warned
