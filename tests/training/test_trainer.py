"""One trainer: its steps, its loss, its learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_emb.config import TrainingConfig
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.models.base import build_model
from recsys_emb.training import run as running
from recsys_emb.training.checkpoint import Checkpoints
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.task import task_of
from recsys_emb.training.trainer import Trainer
from tests.training.conftest import config_for


def make_trainer(prepared: Path, folder: Path, **training: Any) -> Trainer:
    config = config_for(prepared, **training)
    dataset = open_dataset(prepared)
    planned = running.plan(config, dataset)
    model = build_model(config.model, dataset.schema, planned.build())
    loaders = [BatchLoader(dataset.split(s), dataset.schema, 256) for s in ("train", "valid")]
    settings = TrainingConfig(**config.training.model_dump())
    return Trainer(task_of(config), model, settings, *loaders, Checkpoints(folder), "fp32")


def test_the_plateau_rule(prepared: Path, tmp_path: Path) -> None:
    """A gain resets the count; the first flat evaluation drops the rate; ``patience`` more end the training."""
    trainer = make_trainer(prepared, tmp_path, patience=2, lr_drop=0.1, learning_rate=0.01, min_delta=1e-3)
    rates, bests = [], []
    for auc in (0.70, 0.71, 0.7105, 0.72, 0.71, 0.7205, 0.70):
        bests.append(trainer._judge({"auc": auc}))
        rates.append(trainer.progress.learning_rate)
        if trainer.progress.finished:
            break
    assert bests == [True, True, False, True, False, False, False]
    assert rates == pytest.approx([0.01, 0.01, 0.001, 0.001, 0.0001, 0.0001, 0.0001])
    assert trainer.progress.finished
    assert trainer.progress.best_score == 0.72
    rates = [*(g["lr"] for g in trainer.optimizer.dense.param_groups), *(t.lr for t in trainer.optimizer.tables)]
    assert rates == pytest.approx([0.0001] * len(rates))


def test_a_linear_rate_falls_to_zero_and_nothing_stops_it(prepared: Path, tmp_path: Path) -> None:
    schedule = {"lr_schedule": "linear", "learning_rate": 0.02, "eval_every": 4, "max_steps": 18}
    trainer = make_trainer(prepared, tmp_path / "checkpoints", **schedule)
    rates = []
    for step in (4, 8, 12, 16, 18):
        trainer.progress.step = step
        trainer._judge({"auc": 0.7})  # never a gain after the first
        rates.append(
            {*(g["lr"] for g in trainer.optimizer.dense.param_groups), *(t.lr for t in trainer.optimizer.tables)}
        )
        assert trainer.progress.finished == (step == 18)
    assert (
        [max(r) for r in rates]
        == [min(r) for r in rates]
        == pytest.approx([0.02 * (18 - s) / 18 for s in (4, 8, 12, 16, 18)])
    )

    running.train(config_for(prepared, **schedule), tmp_path / "run", Silent())
    logged = {m["step"]: m["learning_rate"] for m in load_run(tmp_path / "run").metrics() if m["event"] == "eval"}
    assert logged == pytest.approx({s: 0.02 * (18 - s) / 18 for s in (4, 8, 12, 16, 18)})


def test_a_loss_that_is_not_finite_stops_at_once(prepared: Path, tmp_path: Path) -> None:
    trainer = make_trainer(prepared, tmp_path)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    batch = next(iter(trainer.train))
    batch.dense[3, 0] = float("nan")
    with pytest.raises(UserError, match=r"loss is nan at step 1 \(epoch 1, batch 1\); lower training.learning_rate"):
        trainer._step(batch)
    assert all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items())
    trainer._step(next(iter(trainer.train)))  # and the next batch trains as if nothing had been


def test_loss_is_weighted_cross_entropy(prepared: Path, tmp_path: Path) -> None:
    trainer = make_trainer(prepared, tmp_path)
    trainer.model.eval()
    batch = next(iter(trainer.train))
    batch.weights = torch.rand(len(batch))
    p = trainer.model(batch).double().sigmoid()
    y = batch.labels.double()
    expected = -(batch.weights * (y * p.log() + (1 - y) * (1 - p).log())).mean()
    assert trainer.loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dense_adam_mode_is_torchs_adam(prepared: Path, tmp_path: Path) -> None:
    """Three steps of the trainer against torch.optim.Adam over all parameters, written out."""
    fm = {"name": "fm", "embedding_dim": 4}
    trainer = make_trainer(prepared, tmp_path / "a", model=fm, embedding_optimizer="dense_adam", l2_embedding=1e-2)
    twin = make_trainer(prepared, tmp_path / "b", model=fm).model
    twin.load_state_dict(trainer.model.state_dict())
    table = [p for n, p in twin.named_parameters() if "table" in n]
    rest = [p for n, p in twin.named_parameters() if "table" not in n]
    for module in twin.modules():
        if hasattr(module, "sparse_grad"):
            module.sparse_grad, module.before_lookup = False, None
    adam = torch.optim.Adam([{"params": rest}, {"params": table, "weight_decay": 1e-2}], lr=0.01)
    for i, batch in enumerate(trainer.train):
        if i == 3:
            break
        trainer._step(batch)
        torch.nn.functional.binary_cross_entropy_with_logits(twin(batch), batch.labels).backward()
        adam.step()
        adam.zero_grad()
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(twin.state_dict()[name], value, rtol=1e-4, atol=1e-6)
