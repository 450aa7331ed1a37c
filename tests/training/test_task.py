"""The task: what the trainer, a search and reports are told by it, not by what they assume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from recsys_emb.config import parse_config
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.training import run as running
from recsys_emb.training.main_metric import MAIN_METRICS, MainMetric, main_metric_in
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.scoring import Scorer
from recsys_emb.training.stage_runner import split_loader
from recsys_emb.training.task import TASKS, ClickThrough, task_of
from tests.training.conftest import config_for


class Logloss(ClickThrough):
    """The same, but the least logloss decides."""

    main = MainMetric("logloss", "logloss", chance=0.7, maximize=False)

    def value(self, predictions):
        return self.metrics(predictions)["logloss"]


def test_the_best_weights_are_those_of_the_tasks_metric(prepared: Path, tmp_path: Path, monkeypatch) -> None:
    """At a rate where logloss is at its best well before the end."""
    monkeypatch.setitem(TASKS, "ctr", Logloss())
    config = config_for(prepared, epochs=6, learning_rate=0.05, plateau=9)
    report = running.train(config, tmp_path / "run", Silent())
    run = load_run(tmp_path / "run")
    losses = [m["logloss"] for m in run.metrics() if m["event"] == "eval"]
    assert report["valid_logloss"] == min(losses) < losses[-1]
    assert report["stages"][0]["valid_logloss"] == min(losses)
    assert running.evaluate(run, "valid")["logloss"] == pytest.approx(min(losses), rel=1e-9)
    model, precision = running.restore(run)
    scorer = Scorer(Logloss(), model, split_loader(open_dataset(prepared), "valid", config), None, precision)
    assert scorer() == pytest.approx(-min(losses), rel=1e-9)  # a search maximises it


def test_labels_that_are_no_clicks_are_refused_with_their_split(prepared: Path) -> None:
    split = open_dataset(prepared).split("valid")
    task = ClickThrough()
    task.check(split)
    labels = split.labels.clone()
    labels[3] = 4
    with pytest.raises(UserError, match=r"^valid split: a label is 4; task ctr takes 0 and 1; prepare the dataset"):
        task.check(dataclasses.replace(split, labels=labels))
    task.check(dataclasses.replace(split, labels=torch.empty(0, dtype=torch.uint8)))


def test_a_config_names_its_task(prepared: Path) -> None:
    config = config_for(prepared)
    assert config.task == "ctr"
    with pytest.raises(UserError, match="task: input should be 'ctr', got 'dance'"):
        parse_config({**config.model_dump(), "task": "dance"})
    assert task_of(config) is TASKS["ctr"]
    assert main_metric_in(config.model_dump()) is main_metric_in({}) is TASKS["ctr"].main
    assert TASKS.keys() == MAIN_METRICS.keys()
    assert all(task.keys[0] == task.main.key for task in TASKS.values())
