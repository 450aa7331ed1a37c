"""What is special about pep: thresholds and their gradient, the cut to a budget, and what is trained again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recsys_emb.embeddings.backends.kept_values import KeptValuesBackend
from recsys_emb.embeddings.backends.pep import PEPBackend
from recsys_emb.embeddings.base import GroupSpec, TableSpec, backend_registry
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.errors import UserError
from recsys_emb.training import run as running
from recsys_emb.training.checkpoint import Checkpoints
from tests.embeddings.backends.runs import check_a_killed_run_ends_the_same, config_for, trained_and_served
from tests.largest import Largest

SIZES = (900, 5, 120)
SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n, init_std=0.05) for i, n in enumerate(SIZES)), 10)
STARTS = (0, 900, 905)
every_kind = pytest.mark.parametrize("by", ["table", "column", "row", "value"])


def make(budget: int | None = None, **options: Any) -> PEPBackend:
    torch.manual_seed(0)
    cls, config = plan_backend("pep", SPEC, budget, None, options)
    backend = cls(SPEC, config)
    assert isinstance(backend, PEPBackend)
    with torch.no_grad():  # rows of very different norms, as training leaves them, and thresholds among them
        backend.table.weight.mul_(torch.rand(len(backend.table.weight), 1) ** 3)
        for s in backend.thresholds.parameters():
            s.copy_(torch.rand_like(s) * 2 - 5)
    return backend


def all_ids() -> tuple[Tensor, list[int]]:
    return torch.cat([torch.arange(n) for n in SIZES]), list(SIZES)


def vectors(weight: np.ndarray, s: np.ndarray, by: str) -> np.ndarray:
    """sign(v) max(|v| - sigmoid(s), 0), value by value."""
    out = np.zeros_like(weight)
    for i, row in enumerate(weight):
        table = sum(i >= start for start in STARTS[1:])
        for j, v in enumerate(row):
            mine = {"table": s[table % len(s), 0], "column": s[table % len(s), j % s.shape[1]]}
            mine |= {"row": s[i % len(s), 0], "value": s[i % len(s), j % s.shape[1]]}
            out[i, j] = np.sign(v) * max(abs(v) - 1 / (1 + np.exp(-mine[by])), 0)
    return out


def of(backend: PEPBackend) -> tuple[np.ndarray, np.ndarray]:
    (s,) = backend.thresholds.parameters()
    return backend.table.weight.detach().numpy(), s.detach().numpy()


@every_kind
def test_a_lookup_gives_what_is_above_its_threshold(by: str) -> None:
    backend = make(by=by)
    expected = vectors(*of(backend), by)
    assert 0.05 < (expected != 0).mean() < 0.8
    for mode in (True, False):
        out = backend.train(mode)(*all_ids())
        np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-7)


@every_kind
def test_gradients_of_thresholds_and_rows_are_finite_differences(by: str) -> None:
    backend = make(by=by).double()
    torch.nn.init.normal_(backend.table.weight, std=0.1)
    weight, (s,) = backend.table.weight, backend.thresholds.parameters()
    ids, counts = torch.tensor([3, 7, 7, 0, 4, 100, 2]), [3, 2, 2]
    scale = torch.randn(len(ids), 10, dtype=torch.float64)

    def loss() -> Tensor:
        out = (backend(ids, counts) * scale).sum()
        aux = backend.aux_loss()
        assert aux is not None
        return out + aux

    loss().backward()
    rows = (3, 907, 1005)
    places = {"table": (0, 1, 2), "column": (0, 1, 2), "row": rows, "value": rows}[by]
    width, eps, seen = s.shape[1], 1e-7, 0
    for tensor, at in ((s, [(i, j % width) for i in places for j in range(4)]), (weight, [(i, 2) for i in rows])):
        for place in at:
            values = []
            for step in (eps, -2 * eps):
                with torch.no_grad():
                    tensor[place] += step
                values.append(loss().item())
            with torch.no_grad():
                tensor[place] += eps
            slope = (values[0] - values[1]) / (2 * eps)
            assert tensor.grad[place].item() == pytest.approx(slope, rel=1e-4, abs=1e-8)
            seen += abs(slope) > 1e-4
    assert seen > 3


def test_l2_draws_thresholds_up() -> None:
    backend = make(decay=0.5, by="table")
    assert backend.aux_loss() is None  # nothing was looked up
    backend(torch.tensor([1, 2, 3]), [1, 0, 2])
    s = backend.thresholds.shared.detach()[:, 0]
    assert backend.aux_loss().item() == pytest.approx(0.25 * (s[0] ** 2 + 2 * s[2] ** 2).item() / 3)
    roles = {g.role: g.lr_scale for g in backend.param_groups()}
    assert roles == {"weight": 1.0, "threshold": 10.0}
    assert backend.eval()(torch.tensor([1]), [1, 0, 0]) is not None
    assert backend.aux_loss() is None


# -- within a budget --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.3, 0.1, 0.02])
def test_evaluation_sees_the_largest_values_that_fit(ratio: float) -> None:
    budget = int(ratio * SPEC.full_bytes)
    backend = make(budget)
    training = backend(*all_ids()).detach()
    out = backend.eval()(*all_ids()).detach()
    kept = out != 0
    assert torch.equal(out[kept], training[kept])
    assert training[~kept].abs().max() <= training[kept].abs().min()
    served = backend.compact()
    stored = sum(t.nbytes for t in served.state_dict().values())
    assert budget - 40 < stored == served.serving_bytes() <= budget
    assert torch.equal(served(*all_ids()), out)
    assert torch.equal(backend.train()(*all_ids()), training)  # training goes on with all values


def test_without_a_budget_thresholds_alone_decide() -> None:
    backend = make()
    training = backend(*all_ids()).detach()
    assert torch.equal(backend.eval()(*all_ids()), training)
    assert backend.compact().serving_bytes() < SPEC.full_bytes == backend.serving_bytes()
    with torch.no_grad():
        backend.thresholds.shared.fill_(-30)
    assert backend.train().compact().name == "full"  # sparse rows would take more


def test_the_mask_is_trained_again_from_other_values() -> None:
    backend, initial = make(4000).eval(), make(4000)
    found = backend.search(lambda: 0.0, 1).eval()
    out = backend(*all_ids())
    assert torch.equal(found(*all_ids()) != 0, out != 0)
    torch.nn.init.normal_(initial.table.weight)
    found.inherit(initial)
    assert torch.equal(found(*all_ids()), torch.where(out != 0, initial.table.weight, 0.0))
    served = found.compact()
    assert served.serving_bytes() == found.serving_bytes() == backend.compact().serving_bytes()
    assert sum(line.bytes for line in found.describe()) == found.serving_bytes()
    assert torch.equal(served(*all_ids()), found(*all_ids()))
    with torch.no_grad():
        found.table.weight[:100] = 0  # zeros that training made are stored, or the bytes would be others
    assert found.compact().serving_bytes() == found.serving_bytes()
    (found.train()(*all_ids()) ** 2).sum().backward()
    assert torch.equal(found.table.weight.grad != 0, found._kept(found.index.kept())[1] & (found.table.weight != 0))


def test_everything_or_nothing_may_be_kept() -> None:
    for s, bytes_ in ((30.0, 0), (-30.0, SPEC.full_bytes)):
        backend = make()
        torch.nn.init.constant_(backend.thresholds.shared, s)
        found = backend.eval().search(lambda: 0.0, 1)
        assert found.serving_bytes() == found.compact().serving_bytes() == bytes_
        assert torch.equal(found.eval()(*all_ids()), backend(*all_ids()))


def test_training_the_mask_costs_what_the_batch_costs() -> None:
    spec = GroupSpec((TableSpec("a", 200_000, init_std=0.05), TableSpec("b", 100_000, init_std=0.05)), 4)
    cls, config = plan_backend("pep", spec, int(0.3 * spec.full_bytes))
    found = cls(spec, config).eval().search(lambda: 0.0, 1).train()
    found.table.sparse_grad = True
    with Largest(found) as largest:
        found(torch.randint(100_000, (60,)), [30, 30]).square().sum().backward()
    assert 240 <= largest.numel < 5000
    assert all(p.grad is not None and p.grad.is_sparse for p in found.parameters())


def test_what_cannot_be_reached_says_the_least() -> None:
    # 3 values of 5 bytes, the ids of their rows 12, one block of row lengths 32 + 4
    with pytest.raises(UserError, match=r"pep cannot fit in 62 bytes; the least it can reach is 63 bytes"):
        plan_backend("pep", SPEC, 62)
    assert make(63).compact().serving_bytes() <= 63
    with pytest.raises(UserError, match=r"options.bytes: 62 bytes; allowed: 63 to 41,000"):
        plan_backend("pep", SPEC, options={"bytes": 62})
    with pytest.raises(UserError, match=r"kept_values is what another backend finds"):
        plan_backend("kept_values", SPEC)
    assert "kept_values" not in backend_registry.names()


# -- runs -------------------------------------------------------------------------------------------------------------


@every_kind
def test_a_run_stays_within_its_budget_and_trains_again_from_the_start(prepared: Path, tmp_path: Path, by: str) -> None:
    run, report = trained_and_served(config_for(prepared, "pep", by=by), tmp_path)
    assert [s["name"] for s in report["stages"]] == ["prune", "search", "retrain"]
    assert 0.15 < report["ratio"] <= 0.2
    assert report["stages"][0]["valid_auc"] == report["stages"][1]["valid_auc"]  # evaluation saw the mask already
    initial = load_file(Checkpoints(run.checkpoints("prune")).initial / "model.safetensors")
    best = Checkpoints(run.checkpoints("retrain")).best()
    assert best is not None
    last = load_file(best / "model.safetensors")
    model, _ = running.restore(run)
    found = model.embedding.backend
    assert isinstance(found, KeptValuesBackend)
    kept = found._kept(found.index.kept())[1]
    start = initial["embedding.backend.table.weight"][found.index.kept()]
    moved = last["embedding.backend.table.weight"] - start
    assert moved[kept].abs().mean() > 0.01
    assert (moved[~kept] == 0).all()


@pytest.mark.parametrize("kill_at", [13, 20])
def test_a_killed_run_ends_the_same(prepared: Path, tmp_path: Path, kill_at: int) -> None:
    """While it prunes, after its first evaluation; and when it trains again. Stages of 16 steps."""
    check_a_killed_run_ends_the_same(config_for(prepared, "pep"), tmp_path, kill_at)
