"""Runs of several stages, with a backend made for this test: a table whose width a search decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings.backends.full import FullBackend
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, backend_registry
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.stages import Compact, InitFrom, Search, Stage, Train
from recsys_emb.embeddings.tables import EmbeddingTable, fill_uniform
from recsys_emb.training import metrics
from recsys_emb.training import run as running
from recsys_emb.training.checkpoint import Checkpoints, load_tensors
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import RunDir, load_run
from recsys_emb.training.stage_runner import StageRunner
from recsys_emb.training.trainer import Trainer, TrainingState

DIM = 4


class NarrowConfig(BackendConfig):
    start: Literal["best", "initial", "anew", "optimizer"] = "best"
    rows: int | None = None
    width: int | None = None


class Narrow(EmbeddingBackend[NarrowConfig]):
    """Trains all columns, keeps the first few of them, trains these, and is served by a full table."""

    name = "narrow"
    Config = NarrowConfig
    summary = "the first columns"
    fail_after: int | None = None  # calls of ``score``

    def __init__(self, spec: GroupSpec, config: NarrowConfig, device: Any = None) -> None:
        super().__init__(spec, config, device)
        self.width = config.width or spec.embedding_dim
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])
        self.table = EmbeddingTable(spec.num_embeddings, self.width, 0.01, device)
        fill_uniform(self.table.weight, 0.01)

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        rows = self.table(self.rows_of(ids, counts))[:, : self.width]
        return torch.nn.functional.pad(rows, (0, self.spec.embedding_dim - self.width))

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        assert isinstance(config, NarrowConfig)
        init = {
            "best": InitFrom(),
            "initial": InitFrom(checkpoint="initial"),
            "anew": InitFrom(weights=False),
            "optimizer": InitFrom(optimizer=True),
        }[config.start]
        if config.start == "optimizer":
            return Train("wide"), Train("again", init)
        return Train("wide"), Search(rows=config.rows), Train("narrow", init), Compact()

    def search(self, score: Callable[[], float], seed: int) -> Narrow:
        scores = {}
        for width in range(1, self.spec.embedding_dim):
            if len(scores) == self.fail_after:
                raise Killed
            self.width = width
            scores[width] = score()
        best = max(scores, key=scores.__getitem__)
        found = Narrow(self.spec, self.config.model_copy(update={"width": best}))
        found.inherit(self)
        return found

    def inherit(self, source: EmbeddingBackend[Any]) -> None:
        with torch.no_grad():
            self.table.weight.copy_(source.table.weight[:, : self.width])

    def compact(self) -> FullBackend:
        full = FullBackend(self.spec, BackendConfig())
        for i in range(len(self.spec.tables)):
            full.load_rows(i, torch.cat(list(self.rows(i))))
        return full


class Killed(Exception):
    pass


class KilledAt(Silent):
    """Dies after so many steps of all stages together."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_registry.names()  # loads the others first
    monkeypatch.setitem(backend_registry._entries, "narrow", Narrow)


def config_for(data: Path, **options: Any) -> RunConfig:
    return parse_config(
        {
            "data": {"path": str(data)},
            "model": {"name": "wide_deep", "embedding_dim": DIM - 1, "hidden": [8], "dropout": 0.1},
            "embedding": {"backend": "narrow", "options": options},
            "training": {"epochs": 2, "batch_size": 300, "precision": "fp32", "learning_rate": 0.01, "eval_every": 4},
            "device": "cpu",
        }
    )


def figures(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what depends on the clock."""
    timed = ("train_seconds", "samples_per_second", "peak_rss_bytes")
    kept = {k: v for k, v in report.items() if k not in timed}
    kept["stages"] = [{k: v for k, v in s.items() if k != "seconds"} for s in report["stages"]]
    return kept


def runner_of(run: RunDir) -> StageRunner:
    dataset = open_dataset(run.config.data.path)
    planned = running.plan(run.config, dataset)
    return StageRunner(
        run, dataset, planned.spec, planned.build, planned.backend.stages(planned.config), torch.device("cpu"), "fp32",
        Silent(),
    )  # fmt: skip


def test_stages_run_in_their_order_each_in_its_own_folder(prepared: Path, tmp_path: Path) -> None:
    report = running.train(config_for(prepared), tmp_path / "run", Silent())
    run = load_run(tmp_path / "run")
    assert [s["name"] for s in report["stages"]] == ["wide", "search", "narrow", "compact"]
    assert [s["steps"] for s in report["stages"]] == [16, 0, 16, 0]
    assert report["steps"] == 32
    assert report["epochs"] == 4
    assert all(s["seconds"] > 0 for s in report["stages"])
    assert report["train_seconds"] == sum(s["seconds"] for s in report["stages"])
    for stage in report["stages"]:
        assert Checkpoints(run.checkpoints(stage["name"])).best() is not None
    entries = json.loads((run.path / "embedding.json").read_text())
    assert [(k, v["backend"]) for k, v in entries.items()] == [
        ("wide", "narrow"), ("search", "narrow"), ("narrow", "narrow"), ("compact", "full"),
    ]  # fmt: skip
    assert entries["wide"]["config"]["width"] is None
    assert entries["search"] == entries["narrow"]
    assert 1 <= entries["narrow"]["config"]["width"] < DIM
    assert report["serving_bytes"] == report["full_bytes"]  # this method's serving form is a full table


def test_the_final_stages_model_is_restored(prepared: Path, tmp_path: Path) -> None:
    report = running.train(config_for(prepared), tmp_path / "run", Silent())
    run = load_run(tmp_path / "run")
    model, _ = running.restore(run)
    assert isinstance(model.embedding.backend, FullBackend)
    assert running.evaluate(run)["auc"] == report["auc"]
    assert running.evaluate(run, "valid")["auc"] == report["valid_auc"] == report["stages"][-1]["valid_auc"]
    assert report["stages"][-1]["valid_auc"] == report["stages"][-2]["valid_auc"]  # compaction changes no row


def test_a_search_scores_the_same_validation_rows_every_time(prepared: Path, tmp_path: Path) -> None:
    report = running.train(config_for(prepared), tmp_path / "all", Silent())
    scores = [m["auc"] for m in load_run(tmp_path / "all").metrics() if m["event"] == "search"]
    assert len(scores) == DIM - 1
    assert report["stages"][1]["valid_auc"] == max(scores)  # of the whole split: nothing else was scored

    seen: list[int] = []
    auc = metrics.auc
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys_emb.training.metrics.auc", lambda s, *rest: seen.append(len(s)) or auc(s, *rest))
        config = config_for(prepared, rows=100)
        config = config.model_copy(update={"training": config.training.model_copy(update={"batch_size": 50})})
        running.train(config, tmp_path / "some", Silent())
    rows = len(open_dataset(prepared).split("valid"))
    assert seen.count(100) == DIM - 1
    assert set(seen) == {100, rows, len(open_dataset(prepared).split("test"))}


@pytest.mark.parametrize("start", ["best", "initial", "anew"])
def test_what_a_training_starts_from(prepared: Path, tmp_path: Path, start: str) -> None:
    running.train(config_for(prepared, start=start), tmp_path / "run", Silent())
    run = load_run(tmp_path / "run")
    runner = runner_of(run)
    model = runner._begin(2, None)
    width = model.embedding.backend.width
    wide = Checkpoints(run.checkpoints("wide"))
    best = wide.best()
    assert best is not None
    assert wide.initial.exists() == (start == "initial")
    saved = load_tensors((wide.initial if start == "initial" else best) / "model.safetensors")
    now = model.state_dict()
    table = "embedding.backend.table.weight"
    same = [torch.equal(now[k], v[:, :width] if k == table else v) for k, v in saved.items()]
    assert all(same) == (start != "anew")
    assert not torch.equal(now[table], saved[table][:, :width]) or start != "anew"
    torch.manual_seed(123)
    again = runner._begin(2, None).state_dict()  # whatever happened before
    assert all(torch.equal(now[k], v) for k, v in again.items())


def test_an_optimizer_goes_on(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = []
    fit = Trainer.fit
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda t, *a: starts.append((t.optimizer.state_dict(), t.optimizer.tables[0].steps)) or fit(t, *a),
    )
    running.train(config_for(prepared, start="optimizer"), tmp_path / "run", Silent())
    best = Checkpoints(tmp_path / "run/checkpoints/wide").best()
    assert best is not None
    state = json.loads((best / "state.json").read_text())
    tensors, steps = starts[1]
    assert steps == state["step"] > 0
    saved = load_tensors(best / "optimizer.safetensors")
    assert saved["table.0.exp_avg"].abs().sum() > 0
    assert set(tensors) == set(saved) - {"random_state"}
    # What "again" began with went through its own training since; its first checkpoint counts on from there.
    again = Checkpoints(tmp_path / "run/checkpoints/again").last()
    assert again is not None
    counted = load_tensors(again / "optimizer.safetensors")
    assert int(counted["dense.0.step"]) == state["step"] + json.loads((again / "state.json").read_text())["step"]
    assert int(counted["table.0.last_step"].max()) == int(counted["dense.0.step"])


@pytest.mark.parametrize(("start", "kill_at"), [
    ("best", 2), ("best", 6), ("best", 16), ("best", 17), ("best", 22), ("best", 32), ("initial", 17), ("initial", 22),
    ("anew", 18), ("optimizer", 6), ("optimizer", 18), ("optimizer", 23),
])  # fmt: skip
def test_killed_in_any_stage_it_continues_to_the_same_report(
    prepared: Path, tmp_path: Path, start: str, kill_at: int
) -> None:
    """Stages of 16 steps, evaluations after every 4."""
    config = config_for(prepared, start=start)
    whole = running.train(config, tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        running.train(config, tmp_path / "killed", KilledAt(kill_at))
    resumed = running.train(config, tmp_path / "killed", Silent(), resume=True)
    assert figures(resumed) == figures(whole)
    assert json.loads((tmp_path / "killed/embedding.json").read_text()) == json.loads(
        (tmp_path / "whole/embedding.json").read_text()
    )


def test_killed_in_a_search_it_searches_again(prepared: Path, tmp_path: Path) -> None:
    config = config_for(prepared, start="initial")
    whole = running.train(config, tmp_path / "whole", Silent())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        patch.setattr(Narrow, "fail_after", 2)
        running.train(config, tmp_path / "killed", Silent())
    assert figures(running.train(config, tmp_path / "killed", Silent(), resume=True)) == figures(whole)


def test_killed_after_the_last_stage_only_the_report_is_missing(prepared: Path, tmp_path: Path) -> None:
    config = config_for(prepared)
    whole = running.train(config, tmp_path / "run", Silent())
    (tmp_path / "run/DONE").unlink()
    (tmp_path / "run/report.json").unlink()
    assert figures(running.train(config, tmp_path / "run", KilledAt(1), resume=True)) == figures(whole)


def test_impossible_stages_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="goes with the best weights"):
        InitFrom(optimizer=True, checkpoint="initial")
    run = RunDir.create(tmp_path / "run", config_for(prepared), open_dataset(prepared))
    runner = runner_of(run)
    with pytest.raises(ValueError, match="names that differ"):
        StageRunner(run, runner.dataset, runner.spec, runner.first, [Train(), Train()], runner.device, "fp32", Silent())
