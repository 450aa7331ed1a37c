"""Stages whose architecture parameters learn from rows of their own: which rows, and what each kind of step touches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys_emb.config import EmbeddingConfig, RunConfig
from recsys_emb.data.batches import BatchLoader, OneIn
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, ParamGroup, backend_registry
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.stages import Bilevel, Stage, Train
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.errors import UserError
from recsys_emb.training import run as running
from recsys_emb.training.held_out import HeldOut
from recsys_emb.training.model_optimizer import ModelOptimizer
from recsys_emb.training.progress import Silent
from recsys_emb.training.trainer import Trainer
from tests.training.conftest import config_for


class Config(BackendConfig):
    every: int = 3
    one_in: int = 5
    role: str = "arch"


class Gated(EmbeddingBackend[Config]):
    """A full table times a gate for each column."""

    name = "gated"
    summary = "a gate for each column"
    Config = Config

    def __init__(self, spec: GroupSpec, config: Config, device: Any = None) -> None:
        super().__init__(spec, config, device)
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])
        self.table = EmbeddingTable(spec.num_embeddings, spec.embedding_dim, 0.3, device)
        self.gates = nn.Parameter(torch.ones(spec.embedding_dim, device=device))

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return self.table(self.rows_of(ids, counts)) * self.gates

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup("weight", [self.table.weight]), ParamGroup(self.config.role, [self.gates])]  # type: ignore[arg-type]

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        assert isinstance(config, Config)
        return (Train(bilevel=Bilevel(config.every, config.one_in)),)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_registry.names()  # loads the others first
    monkeypatch.setitem(backend_registry._entries, "gated", Gated)


def config_of(prepared: Path, options: dict[str, Any] | None = None, **training: Any) -> RunConfig:
    model = {"name": "deepfm", "embedding_dim": 4, "hidden": [8]}
    config = config_for(prepared, model, epochs=2, l2_embedding=1e-2, **{"eval_every": 4, "patience": 9, **training})
    return config.model_copy(update={"embedding": EmbeddingConfig(backend="gated", options=Config(**(options or {})))})


@given(rows=st.integers(0, 200), k=st.integers(2, 30))
def test_each_row_is_held_out_or_not(rows: int, k: int) -> None:
    held, others = OneIn(k), OneIn(k, others=True)
    a, b = (part.numbers(torch.arange(part.count(rows))) for part in (held, others))
    assert len(a) == rows // k
    assert torch.cat([a, b]).sort().values.tolist() == list(range(rows))


def test_rows_that_are_held_out_are_never_trained_on(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[tuple[str, bool], list[int]] = {}
    gather = BatchLoader._gather

    def noted(self: BatchLoader, rows: Any) -> Any:
        if self.only is not None:
            seen.setdefault((self.split.name, self.only.others), []).extend(rows.tolist())
        return gather(self, rows)

    monkeypatch.setattr(BatchLoader, "_gather", noted)
    report = running.train(config_of(prepared, {"every": 1}), tmp_path / "run", Silent())
    rows = len(open_dataset(prepared).split("train"))
    trained, held = seen["train", True], seen["train", False]
    assert set(seen) == {("train", True), ("train", False)}
    assert sorted(trained) == sorted([i for i in range(rows) if i % 5 != 4] * 2)  # two epochs
    assert set(held) == {i for i in range(rows) if i % 5 == 4}
    assert report["steps"] * 300 >= len(trained)


@pytest.mark.parametrize("optimizer", ["adam", "dense_adam", "sgd"])
def test_each_kind_of_step_touches_its_own_parameters(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    steps: list[str] = []
    step, step_arch = Trainer._step, Trainer._step_arch

    def state(trainer: Trainer) -> tuple[dict[str, Tensor], Tensor]:
        backend = trainer.backend
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if n != "embedding.backend.gates"}
        weights["embedding.backend.table.weight"] = backend.table.current(torch.arange(backend.table.num_rows)).clone()
        return weights, backend.gates.detach().clone()

    def of_weights(self: ModelOptimizer, own: Any = ModelOptimizer.step) -> None:
        gates = trainers[0].backend.gates
        before = gates.detach().clone()
        own(self)
        assert torch.equal(gates, before)
        assert gates.grad is None
        steps.append("weights")

    def of_architecture(self: Trainer, batch: Any) -> None:
        weights, gates = state(self)
        step_arch(self, batch)
        after, moved = state(self)
        assert not torch.equal(gates, moved)
        for name, weight in weights.items():
            torch.testing.assert_close(after[name], weight, rtol=0, atol=1e-7, msg=name)
        assert all(p.grad is None for p in self.model.parameters())
        steps.append("architecture")

    trainers: list[Trainer] = []
    monkeypatch.setattr(Trainer, "_step", lambda self, batch: (trainers.append(self), step(self, batch))[1])
    monkeypatch.setattr(ModelOptimizer, "step", of_weights)
    monkeypatch.setattr(Trainer, "_step_arch", of_architecture)
    running.train(config_of(prepared, embedding_optimizer=optimizer, max_steps=9), tmp_path / "run", Silent())
    assert steps == (["weights"] * 3 + ["architecture"]) * 3


class Numbers:
    """A loader of 3 batches an epoch, which are (epoch, number)."""

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[int, int]]:
        return ((epoch, number) for number in range(start, 3))


@pytest.mark.parametrize("start", [0, 3, 5, 8])
def test_held_out_batches_come_in_order_wherever_training_goes_on(start: int) -> None:
    held: Any = HeldOut(Numbers(), every=2)  # type: ignore[arg-type]
    expected = [None, (0, 0), None, (0, 1), None, (0, 2), None, (1, 0), None, (1, 1), None, (1, 2), None, (2, 0)]
    assert [held.after(step) for step in range(start, 14)] == expected[start:]


class Killed(Exception):
    pass


class KilledAt(Silent):
    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("kill_at", [5, 8, 11])
def test_a_killed_run_ends_the_same(prepared: Path, tmp_path: Path, kill_at: int, every: int) -> None:
    """Two batches are held out: a pass over them ends before and after the kill."""
    config = config_of(prepared, {"every": every})
    whole = running.train(config, tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        running.train(config, tmp_path / "killed", KilledAt(kill_at))
    resumed = running.train(config, tmp_path / "killed", Silent(), resume=True)
    for key in ("auc", "logloss", "valid_auc", "training_bytes", "steps"):
        assert resumed[key] == whole[key], key


def test_stages_that_cannot_be_are_refused(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gated: a bilevel stage, and no parameters of role arch"):
        running.train(config_of(prepared, {"role": "scale"}), tmp_path / "a", Silent())
    with pytest.raises(UserError, match="stage 'train' needs 100000 training rows or more"):
        running.train(config_of(prepared, {"one_in": 100_000}), tmp_path / "b", Silent())
    for given_ in ({"every": 0}, {"one_in": 1}):
        with pytest.raises(ValueError, match="Bilevel: "):
            Bilevel(**given_)
