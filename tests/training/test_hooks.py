"""A backend of another package sees up-to-date rows in the hooks that training calls, and its groups are honoured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_emb.config import EmbeddingConfig, RunConfig
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, ParamGroup, Stats, backend_registry
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.models.base import build_model
from recsys_emb.training import run as running
from recsys_emb.training.model_optimizer import ModelOptimizer
from recsys_emb.training.progress import Silent
from tests.training.conftest import config_for

FM = {"name": "fm", "embedding_dim": 4}


class Config(BackendConfig):
    lr_scale: float = 1.0


class Watching(EmbeddingBackend[Config]):
    """A full table times a factor; notes what its hooks see."""

    name = "watching"
    summary = "notes what its hooks see"
    Config = Config

    def __init__(self, spec: GroupSpec, config: Config, device: Any = None) -> None:
        super().__init__(spec, config, device)
        self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])
        self.table = EmbeddingTable(spec.num_embeddings, spec.embedding_dim, 0.3, device)
        self.factor = nn.Parameter(torch.ones((), device=device))
        self.seen: dict[tuple[str, int], Tensor] = {}

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        return self.table(self.rows_of(ids, counts)) * self.factor

    def param_groups(self) -> list[ParamGroup]:
        return [ParamGroup("weight", [self.table.weight], self.config.lr_scale), ParamGroup("scale", [self.factor])]

    def see_counts(self, stats: Stats) -> None:
        self.counts = dict(stats)

    def after_step(self, step: int) -> None:
        rows = torch.arange(self.table.num_rows)
        self.seen["stored", step] = self.table.weight.detach().clone()
        self.seen["current", step] = self.table.current(rows)
        assert torch.equal(self.table.weight, self.seen["stored", step])  # looking changes nothing

    def after_epoch(self, epoch: int) -> None:
        self.seen["epoch", epoch] = self.table.weight.detach().clone()


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    backend_registry.names()  # loads the others first
    monkeypatch.setitem(backend_registry._entries, "watching", Watching)


def watched(prepared: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **training: Any) -> Watching:
    """The backend of a run, as it was left."""
    made: list[Watching] = []
    init = Watching.__init__

    def noted(self: Watching, *args: Any) -> None:
        init(self, *args)
        made.append(self)

    with monkeypatch.context() as patch:
        patch.setattr(Watching, "__init__", noted)
        running.train(config_of(prepared, **training), out, Silent())
    return next(backend for backend in made if backend.seen)


def config_of(prepared: Path, lr_scale: float = 1.0, **training: Any) -> RunConfig:
    config = config_for(prepared, FM, epochs=2, eval_every=1000, l2_embedding=1e-2, **training)
    embedding = EmbeddingConfig(backend="watching", options=Config(lr_scale=lr_scale))
    return config.model_copy(update={"embedding": embedding})


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_a_backend_that_is_trained_sees_the_counts(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, known = watched(prepared, tmp_path / "run", monkeypatch, max_steps=1).counts, open_dataset(prepared).stats()
    assert seen.keys() == known.keys()
    assert all((seen[name] == counts).all() for name, counts in known.items())


def test_hooks_see_rows_as_dense_adam_has_them(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that no batch has had for some steps are stale in the table until somebody asks for them."""
    rate = {"learning_rate": 1e-3}
    ours = watched(prepared, tmp_path / "ours", monkeypatch, **rate).seen
    dense = watched(prepared, tmp_path / "dense", monkeypatch, **rate, embedding_optimizer="dense_adam").seen
    steps = [step for kind, step in ours if kind == "current"]
    assert len(steps) > 15
    for step in steps:
        assert distance(ours["current", step], dense["current", step]) < 0.006
    assert distance(ours["stored", steps[-1]], dense["current", steps[-1]]) > 0.012
    for epoch, last in ((0, len(steps) // 2 - 1), (1, len(steps) - 1)):
        torch.testing.assert_close(ours["epoch", epoch], ours["current", last], rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "dense_adam", "rowwise_adagrad", "sgd"])
@pytest.mark.parametrize("scale", ["group", "role"])
def test_a_group_of_a_tables_weight_has_its_own_learning_rate(prepared: Path, optimizer: str, scale: str) -> None:
    """A tenth of the rate, asked for by the backend or by the run, is the tenth of the rate."""

    def trained(**config: Any) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        run = config_of(prepared, embedding_optimizer=optimizer, **config)
        dataset = open_dataset(prepared)
        model = build_model(run.model, dataset.schema, running.plan(run, dataset).build())
        optim, backend = ModelOptimizer(model, run.training), model.embedding.backend
        before = backend.table.weight.detach().clone(), backend.factor.detach().clone()
        rows = torch.arange(50)
        (backend.table(rows).square().sum() * 1e-3 + backend.factor).backward()
        optim.step()
        return backend.table.weight.detach() - before[0], backend.factor.detach() - before[1]

    less = {"lr_scale": 0.1} if scale == "group" else {"lr_scales": {"weight": 0.1}}
    table, factor = trained(learning_rate=0.01, **less)
    as_much, _ = trained(learning_rate=0.001)
    torch.testing.assert_close(table, as_much)
    assert table.abs().max() > 0
    assert factor.item() == pytest.approx(-0.01)  # of another role


def test_every_parameter_belongs_to_a_group(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Watching, "param_groups", lambda self: [ParamGroup("weight", [self.table.weight])])
    run, dataset = config_of(prepared), open_dataset(prepared)
    model = build_model(run.model, dataset.schema, running.plan(run, dataset).build())
    with pytest.raises(ValueError, match=r"watching: param_groups\(\) leaves out factor"):
        ModelOptimizer(model, run.training)


def test_dense_adam_moves_rows_and_makes_them_anew_with_its_state(prepared: Path) -> None:
    """Against a run whose rows were swapped from the start."""
    place = torch.tensor([2, 1, 0, 3])

    def start(rows: Tensor) -> tuple[EmbeddingTable, ModelOptimizer]:
        torch.manual_seed(0)
        run, dataset = config_of(prepared, embedding_optimizer="dense_adam"), open_dataset(prepared)
        model = build_model(run.model, dataset.schema, running.plan(run, dataset).build())
        table = model.embedding.backend.table
        table.weight.data[:4] = table.weight.data[rows]
        return table, ModelOptimizer(model, run.training)

    def steps(table: EmbeddingTable, optimizer: ModelOptimizer, rows: Tensor) -> None:
        for step in range(10):
            (table(rows[:3]) * torch.sin(torch.arange(3.0) + step)[:, None]).sum().backward()
            optimizer.step()

    moved, a = start(torch.arange(4))
    steps(moved, a, torch.arange(4))
    moved.move(torch.tensor([0, 2]), torch.tensor([2, 0]))
    steps(moved, a, place)
    swapped, b = start(place)
    steps(swapped, b, place)
    steps(swapped, b, place)
    torch.testing.assert_close(moved.weight, swapped.weight, rtol=0, atol=0)

    moved.reset(torch.tensor([1]))
    fresh = moved.weight[1].detach().clone()
    assert not any(state[1].any() for state in moved.optimizer.row_state())
    torch.testing.assert_close(moved.current(torch.tensor([1, 0])), moved.weight[[1, 0]].detach(), rtol=0, atol=0)
    (moved(torch.tensor([1])).sum()).backward()
    a.step()
    # b1 and b2 at step 21: (1 - b1) / (1 - b1^21) and its like of the second moment
    ratio = 0.1 / (1 - 0.9**21) / (0.001 / (1 - 0.999**21)) ** 0.5
    torch.testing.assert_close(moved.weight[1].detach(), fresh - 0.01 * ratio, rtol=0, atol=2e-4)
