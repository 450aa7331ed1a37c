"""What is special about dnis and autosrh: gates by frequency and column, and what is cut to the budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_emb.embeddings.backends._block_gates import GatedBackend
from recsys_emb.embeddings.backends.kept_values import KeptValuesBackend, sparse_bytes
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.training import run as running
from tests.embeddings.backends.runs import check_a_killed_run_ends_the_same, config_for, trained_and_served

SIZES = (900, 5, 120)
SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n, init_std=0.05) for i, n in enumerate(SIZES)), 10)
STATS = {
    "t0": np.arange(900, 0, -1),
    "t1": np.array([0, 8, 4, 2, 2]),
    "t2": np.array([3, 1, 4] * 40),  # does not fall with the id
}
every_method = pytest.mark.parametrize("name", ["dnis", "autosrh"])


def make(name: str, budget: int | None = None, **options: Any) -> GatedBackend[Any]:
    torch.manual_seed(0)
    cls, config = plan_backend(name, SPEC, budget, STATS, options)
    backend = cls(SPEC, config)
    assert isinstance(backend, GatedBackend)
    backend.see_counts(STATS)
    torch.nn.init.uniform_(backend.gates.weight, -1, 1)
    return backend


def all_ids() -> tuple[Tensor, list[int]]:
    return torch.cat([torch.arange(n) for n in SIZES]), list(SIZES)


def blocks(groups: int) -> list[int]:
    """Each id's block: those before it have its share of the traffic, at most; by hand from the counts."""
    found = []
    for table, (name, counts) in enumerate(STATS.items()):
        traffic = np.cumsum(counts)
        for i in range(len(counts)):
            before = traffic[i - 1] if i else 0
            full = sum(before >= traffic[-1] * g / groups for g in range(1, groups)) if name != "t2" else 0
            found.append(table * groups + full)
    return found


@every_method
@pytest.mark.parametrize("groups", [1, 4])
def test_a_row_is_multiplied_by_the_gates_of_its_block(name: str, groups: int) -> None:
    backend = make(name, blocks=groups)
    of = torch.tensor(blocks(groups))
    assert len(of.unique()) == (3 if groups == 1 else 4 + 3 + 1)
    assert backend.gates.sizes().flatten().tolist() == torch.bincount(of, minlength=3 * groups).tolist()
    gates = backend.gates.weight.flatten(0, 1)
    expected = backend.table.weight * gates[of]
    for mode in (True, False):
        assert torch.equal(backend.train(mode)(*all_ids()), expected)
    assert {g.role: g.lr_scale for g in backend.param_groups()} == {"weight": 1.0, "arch": 0.1}


@every_method
@pytest.mark.parametrize("ratio", [0.4, 0.1])
def test_what_is_smallest_goes_until_the_rest_fits(name: str, ratio: float) -> None:
    """dnis: the smallest products; autosrh: columns of blocks with the smallest gates, all or none of their rows."""
    budget = int(ratio * SPEC.full_bytes)
    backend = make(name, budget)
    products = backend(*all_ids()).detach()
    kept = backend.eval()(*all_ids()) != 0
    gates = backend.gates.weight.detach().flatten(0, 1)[torch.tensor(blocks(4))]
    by = products.abs() if name == "dnis" else gates.abs()
    assert by[~kept].max() < by[kept].min()
    found = backend.search(lambda: 0.0, 1)
    assert isinstance(found, KeptValuesBackend)
    assert found.serving_bytes() == backend.compact().serving_bytes() <= budget
    assert torch.equal(found.eval()(*all_ids()), products * kept)
    # The next one would be too much.
    more = by >= by[~kept].max()
    assert sparse_bytes(SPEC, int(more.sum()), int(more.any(1).sum())) > budget


def test_gradients_of_a_blocks_gates_have_the_same_mean_magnitude() -> None:
    backend = make("dnis")
    backend(*all_ids()).square().sum().backward()
    before = backend.gates.weight.grad.clone()
    backend.after_backward(0)
    after = backend.gates.weight.grad
    used = before.abs().sum(2) > 0
    assert used.sum() == 8
    torch.testing.assert_close(after[used], before[used] / before[used].abs().mean(1, keepdim=True))
    assert not after[~used].any()


@every_method
def test_a_run_trains_what_evaluation_saw(prepared: Path, tmp_path: Path, name: str) -> None:
    run, report = trained_and_served(config_for(prepared, name), tmp_path)
    assert [s["name"] for s in report["stages"]] == ["gates", "search", "retrain"]
    assert report["stages"][0]["valid_auc"] == report["stages"][1]["valid_auc"]
    assert 0 < report["ratio"] <= 0.2
    model, _ = running.restore(run)
    assert isinstance(model.embedding.backend, KeptValuesBackend)


@every_method
@pytest.mark.parametrize("kill_at", [5, 20])
def test_a_killed_run_ends_the_same(prepared: Path, tmp_path: Path, name: str, kill_at: int) -> None:
    check_a_killed_run_ends_the_same(config_for(prepared, name, every=2), tmp_path, kill_at)
