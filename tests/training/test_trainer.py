"""One trainer: its steps, its loss, its learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recsys_emb.config import TrainingConfig
from recsys_emb.data.batches import Batch, BatchLoader
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.models.base import build_model
from recsys_emb.training import run as running
from recsys_emb.training.checkpoint import MODEL, Checkpoints, load_tensors
from recsys_emb.training.model_optimizer import ModelOptimizer
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import NoLog, load_run
from recsys_emb.training.task import task_of
from recsys_emb.training.trainer import Trainer, TrainingState
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


def test_a_linear_rate_falls_with_every_step_and_nothing_stops_it(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch without an evaluation on the way; every optimizer has the rate of the step that it makes."""
    rates: list[list[float]] = []
    step = ModelOptimizer.step

    def noted(self: ModelOptimizer) -> None:
        rates.append([*(g["lr"] for g in self.dense.param_groups), *(t.lr for t in self.tables)])
        step(self)

    monkeypatch.setattr(ModelOptimizer, "step", noted)
    linear = {"lr_schedule": "linear", "learning_rate": 0.02, "epochs": 1}
    running.train(config_for(prepared, **linear), tmp_path / "run", Silent())
    steps = len(BatchLoader(open_dataset(prepared).split("train"), open_dataset(prepared).schema, 256))
    assert len(rates) == steps > 5
    for i, of_step in enumerate(rates):
        assert of_step == pytest.approx([0.02 * (1 - i / steps)] * len(of_step))

    rates.clear()
    flat = {"eval_every": 1, "min_delta": 1.0, "max_steps": steps - 1}  # no evaluation ever gains
    running.train(config_for(prepared, **{**linear, **flat}), tmp_path / "flat", Silent())
    assert [max(r) for r in rates] == pytest.approx([0.02 * (1 - i / (steps - 1)) for i in range(steps - 1)])


@pytest.mark.parametrize(("look_every", "stopped_at", "found_at"), [(4, None, 8), (50, None, 10), (50, 8, 8)])
def test_a_loss_that_is_not_finite_is_found_before_anything_is_saved(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    look_every: int,
    stopped_at: int | None,
    found_at: int,
) -> None:
    """In step 7: by the next look, by the evaluation of step 10, or when somebody asks to stop."""
    monkeypatch.setattr(Trainer, "log_every", look_every)
    trainer = make_trainer(prepared, tmp_path, eval_every=5)
    batches = list(trainer.train)
    batches[6].dense[3, 0] = float("nan")
    monkeypatch.setattr(trainer.train, "epoch", lambda epoch, start: iter(batches[start:]))

    class Impatient(Silent):
        def step(self, progress: TrainingState, steps: int, loss: float) -> None:
            if progress.step == stopped_at:
                trainer.stop.signal = 15

    with pytest.raises(UserError, match=r"loss is nan at step 7 \(epoch 1, batch 7\); lower training.learning_rate"):
        trainer.fit(NoLog(), Impatient())
    assert trainer.progress.step == found_at
    last = trainer.checkpoints.last()
    assert last is not None
    assert last == trainer.checkpoints.folder(5)
    assert all(t.isfinite().all() for t in load_tensors(last / MODEL).values())


def test_a_log_has_the_loss_of_its_step(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trainer, "log_every", 4)
    trainer = make_trainer(prepared, tmp_path, max_steps=9, model={"name": "lr"})
    computed = []
    loss = trainer.loss

    def noted(batch: Batch) -> torch.Tensor:
        computed.append(loss(batch))
        return computed[-1]

    class Log(NoLog):
        def write(self, kind: str, step: int, epoch: int, **figures: Any) -> None:
            if kind == "train":
                logged[step] = figures["loss"]

    logged: dict[int, float] = {}
    monkeypatch.setattr(trainer, "loss", noted)
    trainer.fit(Log(), Silent())
    assert logged == {step: computed[step - 1].item() for step in (1, 4, 8)}


def test_loss_is_weighted_cross_entropy(prepared: Path, tmp_path: Path) -> None:
    trainer = make_trainer(prepared, tmp_path)
    trainer.model.eval()
    batch = next(iter(trainer.train))
    batch.weights = torch.rand(len(batch))
    p = trainer.model(batch).double().sigmoid()
    y = batch.labels.double()
    expected = -(batch.weights * (y * p.log() + (1 - y) * (1 - p).log())).mean()
    assert trainer.loss(batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_models_own_loss_is_added_by_row(prepared: Path, tmp_path: Path) -> None:
    trainer = make_trainer(prepared, tmp_path)
    trainer.model.eval()
    batch = next(iter(trainer.train))
    without = trainer.loss(batch).item()
    trainer.model.logits_and_loss = lambda x, losses: (trainer.model.logits(x), 3.0 * losses.loss(2 * x.dense[:, 0]))
    more = torch.nn.functional.binary_cross_entropy_with_logits(2 * batch.dense[:, 0], batch.labels, batch.weights)
    assert trainer.loss(batch).item() == pytest.approx(without + 3 * more.item(), rel=1e-5)


def test_l2_by_count_shrinks_embeddings(prepared: Path, tmp_path: Path) -> None:
    norms = []
    for l2 in (0.0, 100.0):
        config = config_for(prepared, epochs=1, l2_by_count=l2)
        running.train(config, tmp_path / str(l2), Silent())
        model, _ = running.restore(load_run(tmp_path / str(l2)))
        norms.append(sum(rows.norm().item() for rows in model.embedding.backend.rows(0)))
    assert norms[1] < 0.7 * norms[0]


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
            module.sparse_grad, module.optimizer = False, None
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
