"""Training that begins with a run's weights, on a state of the data with more ids."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from recsys_emb.cli import app
from recsys_emb.config import RunConfig, dump_config
from recsys_emb.data.append import append
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.errors import UserError
from recsys_emb.serving.artifact import load_artifact
from recsys_emb.serving.compact import write_artifact
from recsys_emb.serving.evaluate import evaluate_artifact
from recsys_emb.training import run as running
from recsys_emb.training.checkpoint import Checkpoints
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import group_of, plan, warm_start_of
from recsys_emb.training.run_dir import RunDir, load_run
from recsys_emb.training.stage_runner import StageRunner
from tests.training.conftest import config_for
from tests.training.test_run import Killed, KilledAt

OPTIONS: dict[str, Any] = {"label": "y", "categorical": ["user", "item", "hour"]}


def write(path: Path, day: int, rows: int) -> Path:
    """Clicks of users and items that move on by five a day; odd users click more."""
    draw = random.Random(day)
    lines = ["y,user,item,hour"]
    for _ in range(rows):
        user, item = 5 * day + draw.randrange(40), 5 * day + draw.randrange(20)
        lines.append(f"{int(draw.random() < 0.3 + 0.4 * (user % 2))},u{user},{item},{draw.randrange(4)}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 rows and three days of 300."""
    folder = tmp_path_factory.mktemp("stream")
    prepare(make_source("table", write(folder / "first.csv", 0, 1000), options=OPTIONS), folder / "data")
    for day in (1, 2, 3):
        append(folder / "data", write(folder / f"day-{day}.csv", day, 300))
    return folder / "data"


def config_at(stream: Path, state: str, embedding: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    plain = config_for(stream, **training)
    tree = plain.model_dump(mode="json")
    data = {"path": str(stream), "state": state, "split": "parts"}
    return type(plain).model_validate({**tree, "data": data, "embedding": embedding or {}})


@pytest.fixture(scope="module")
def yesterday(stream: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run on the first state."""
    out = tmp_path_factory.mktemp("yesterday") / "run"
    running.train(config_at(stream, "base"), out, Silent())
    return load_run(out)


def last_tensors(run: Path, file: str) -> dict[str, torch.Tensor]:
    last = Checkpoints(run / "checkpoints/train").last()
    assert last is not None
    return load_file(last / file)


def test_the_state_is_recorded(stream: Path, yesterday: RunDir) -> None:
    assert yesterday.config.data.state == "base"
    assert yesterday.report["state"] == "base"
    assert yesterday.open_dataset().state == "base"  # though parts were appended since


def test_known_rows_are_scored_as_before(stream: Path, yesterday: RunDir, tmp_path: Path) -> None:
    config = config_at(stream, "day-1", **{"from": str(yesterday.path)})
    dataset, planned = config.data.open(), plan(config, config.data.open())
    assert planned.spec.num_embeddings > group_of(config, yesterday.schema).num_embeddings
    run = RunDir.create(tmp_path / "run", config, dataset)
    stages = planned.backend.stages(planned.config)
    warm = warm_start_of(config, dataset)
    runner = StageRunner(
        run, dataset, planned.spec, planned.build, stages, torch.device("cpu"), "fp32", Silent(), warm_start=warm
    )
    model = runner._begin(0, None).eval()
    before, _ = running.restore(yesterday)
    batch = next(iter(running.split_loader(yesterday.open_dataset(), "train", yesterday.config)))
    with torch.no_grad():
        assert torch.equal(model(batch), before.eval()(batch))


def test_going_on_takes_fewer_steps(stream: Path, yesterday: RunDir, tmp_path: Path) -> None:
    """One step on the new day alone: from a trained model it is no stranger to the data."""
    new = running.train(config_at(stream, "day-1", max_steps=1), tmp_path / "new", Silent())
    settings = {"max_steps": 1, "from": str(yesterday.path)}
    warm = running.train(config_at(stream, "day-1", **settings), tmp_path / "warm", Silent())
    assert warm["auc"] > new["auc"] + 0.05
    assert warm["steps"] == 1


@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad", "sgd"])
def test_the_optimizer_goes_on_and_a_killed_run_resumes(stream: Path, tmp_path: Path, optimizer: str) -> None:
    first, common = tmp_path / "first", {"embedding_optimizer": optimizer, "max_steps": 8, "eval_every": 4}
    running.train(config_at(stream, "base", **common), first, Silent())
    common |= {"from": str(first), "keep_optimizer": True}
    report = running.train(config_at(stream, "day-1", **common), tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        running.train(config_at(stream, "day-1", **common), tmp_path / "killed", KilledAt(6))
    again = running.train(config_at(stream, "day-1", **common), tmp_path / "killed", Silent(), resume=True)
    assert again["auc"] == report["auc"]
    for file in ("model.safetensors", "optimizer.safetensors"):
        one, other = last_tensors(tmp_path / "whole", file), last_tensors(tmp_path / "killed", file)
        assert one.keys() == other.keys()
        assert all(torch.equal(values, other[name]) for name, values in one.items())


def test_state_of_known_rows_is_that_of_the_run(stream: Path, tmp_path: Path) -> None:
    """One step adds to the accumulators of its rows; those of all other known rows are as they were."""
    settings: dict[str, Any] = {"embedding_optimizer": "rowwise_adagrad", "max_steps": 4, "batch_size": 64}
    running.train(config_at(stream, "base", **settings), tmp_path / "first", Silent())
    more = {"from": str(tmp_path / "first"), "keep_optimizer": True, "max_steps": 1}
    running.train(config_at(stream, "day-1", **{**settings, **more}), tmp_path / "next", Silent())
    before, after = (
        last_tensors(tmp_path / r, "optimizer.safetensors")["table.0.accumulator"] for r in ("first", "next")
    )
    sizes = [list(RunDir(tmp_path / r).schema.vocabularies.values()) for r in ("first", "next")]
    old, new = [torch.split(a, s) for a, s in zip((before, after), sizes)]
    for mine, theirs in zip(old, new):
        assert (theirs[: len(mine)] >= mine).all()
    kept = [(theirs[: len(mine)] == mine) & (mine > 0) for mine, theirs in zip(old, new)]
    assert torch.cat(kept).sum() >= 3
    assert any(len(theirs) > len(mine) for mine, theirs in zip(old, new))


def test_the_budget_stays(stream: Path, tmp_path: Path) -> None:
    full = running.train(config_at(stream, "base", max_steps=1), tmp_path / "full", Silent())
    embedding = {"backend": "full", "budget": full["serving_bytes"]}
    training = {"from": str(tmp_path / "full"), "max_steps": 1}
    with pytest.raises(UserError, match=r"embedding\.budget: with the ids that are new full takes .* are allowed"):
        plan(config := config_at(stream, "day-1", embedding, **training), config.data.open())
    shared = {"backend": "unified", "budget": full["serving_bytes"] // 4}
    running.train(config_at(stream, "base", shared, max_steps=1), tmp_path / "unified", Silent())
    training["from"] = str(tmp_path / "unified")
    report = running.train(config_at(stream, "day-1", shared, **training), tmp_path / "on", Silent())
    assert report["serving_bytes"] <= full["serving_bytes"] // 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "fm", "embedding_dim": 4}}, r"its model\.name is deepfm, not fm"),
        ({"model": {"name": "deepfm", "embedding_dim": 8}}, r"its model\.embedding_dim is 4, not 8"),
        ({"embedding": {"backend": "hash"}}, r"its embedding\.backend is full, not hash"),
        ({"training": {"keep_optimizer": True, "embedding_optimizer": "sgd"}}, "embedding_optimizer is sgd, was adam"),
        ({"training": {"from": "nowhere"}}, "nowhere: not a run folder"),
        ({"data": {"state": "base"}}, None),
    ],
)
def test_what_does_not_fit_is_refused(
    stream: Path, yesterday: RunDir, change: dict[str, dict[str, Any]], message: str | None
) -> None:
    tree = config_at(stream, "day-1", **{"from": str(yesterday.path)}).model_dump(mode="json")
    for section, values in change.items():
        tree[section] = values if section == "model" else {**tree[section], **values}
    config = RunConfig.model_validate(tree)
    if message is None:
        assert plan(config, config.data.open()).spec.num_embeddings == sum(yesterday.schema.vocabularies.values())
        return
    with pytest.raises(UserError, match=message) as error:
        plan(config, config.data.open())
    assert "\n" not in str(error.value)


def test_data_that_does_not_go_on_from_the_runs(stream: Path, yesterday: RunDir, tmp_path: Path) -> None:
    prepare(make_source("table", write(tmp_path / "other.csv", 9, 600), options=OPTIONS), tmp_path / "other")
    config = config_for(tmp_path / "other", **{"from": str(yesterday.path)})
    with pytest.raises(UserError, match=r"other in state base does not go on from its dataset: vocabulary 'user'"):
        plan(config, config.data.open())


def test_an_unfinished_run(stream: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        running.train(config_at(stream, "base"), tmp_path / "killed", KilledAt(1))
    config = config_at(stream, "day-1", **{"from": str(tmp_path / "killed")})
    with pytest.raises(UserError, match="the run is not finished"):
        plan(config, config.data.open())


def test_the_command_and_the_artifact_of_a_state(stream: Path, yesterday: RunDir, tmp_path: Path) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "run"
    file.write_text(dump_config(config_at(stream, "day-1", max_steps=1)))
    typed = ["train", file, "--from", yesterday.path, "--out", out, "--json"]
    result = CliRunner().invoke(app, list(map(str, typed)), catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["state"] == "day-1"
    assert load_run(out).config.training.from_ == yesterday.path
    write_artifact(load_run(out), tmp_path / "artifact")
    artifact = load_artifact(tmp_path / "artifact")
    assert artifact.config.data.state == "day-1"
    assert evaluate_artifact(artifact)["auc"] == pytest.approx(report["auc"], abs=1e-6)
