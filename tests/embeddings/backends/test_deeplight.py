"""What is special about deeplight: the density that its schedule says, and the FLOPs regulariser that goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys_emb.embeddings.backends.deeplight import DeepLightBackend
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.errors import UserError
from tests.embeddings.backends.runs import check_a_killed_run_ends_the_same, config_for, trained_and_served

SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n, init_std=0.05) for i, n in enumerate((900, 5, 120))), 10)
VALUES = 1025 * 10
OPTIONS = {"every": 3, "unit": 0.1, "flops": 0.01}


def make(budget: int | None = None, **options: Any) -> DeepLightBackend:
    torch.manual_seed(0)
    cls, config = plan_backend("deeplight", SPEC, budget, None, options)
    backend = cls(SPEC, config)
    assert isinstance(backend, DeepLightBackend)
    return backend


@pytest.mark.parametrize("options", [{"sparsity": 0.8}, {"sparsity": 0.5, "unit": 3, "damping": 0.8}])
def test_density_is_on_schedule_and_the_largest_values_stay(options: dict[str, Any]) -> None:
    backend = make(every=7, **options)
    weight = backend.table.weight.detach()
    s, d, u = options["sparsity"], options.get("damping", 0.99), options.get("unit", 10)
    for step in range(40):
        weight += 0.01 * torch.randn_like(weight)  # training, of values that were pruned, too
        before = weight.clone()
        backend.after_step(step)
        if (step + 1) % 7:
            assert torch.equal(weight, before)
            continue
        kept = weight != 0
        density = 1 - s * (1 - d ** ((step + 1) / u))
        assert kept.sum().item() == int(density * VALUES)
        assert torch.equal(weight[kept], before[kept])
        assert before[~kept].abs().max() <= before[kept].abs().min()
    assert 0.02 < 1 - density < s


def test_a_budget_is_the_sparsity_that_the_schedule_ends_with() -> None:
    for ratio in (0.5, 0.1, 0.01):
        backend = make(int(ratio * SPEC.full_bytes), every=1, unit=0.001)
        backend.after_step(100)
        kept = (backend.table.weight != 0).sum()
        before = backend.eval().table.weight.clone()
        assert backend.cut == 0  # nothing is left to cut
        served = backend.compact()
        assert 0.9 * ratio < served.serving_bytes() / SPEC.full_bytes <= ratio
        assert sum(served.config.values) == kept
        assert torch.equal(torch.cat([torch.cat(list(served.rows(t))) for t in range(3)]), before)
    assert make().sparsity == 0.9
    assert make(4000, sparsity=0.3).sparsity == 0.3
    with pytest.raises(UserError, match=r"deeplight cannot fit in 62 bytes; the least it can reach is 63 bytes"):
        make(62)


@pytest.mark.parametrize("counts", [[20, 20, 20], [31, 0, 9]])
def test_the_flops_regulariser_is_that_of_the_paper(counts: list[int]) -> None:
    backend, plain = make(flops=0.3), make()
    ids = torch.cat([torch.randint(0, n, (c,)) for n, c in zip((900, 5, 120), counts)])
    plain(ids, counts)
    assert plain.aux_loss() is None
    rows = np.split(backend(ids, counts).detach().numpy(), np.cumsum(counts)[:-1])
    expected = 0.3 * sum((np.abs(part).mean(0) ** 2).sum() for part in rows if len(part))
    loss = backend.aux_loss()
    assert loss is not None
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert (backend.table.weight.grad * backend.table.weight).min() >= 0  # all values are drawn to 0


def test_a_run_reports_the_bytes_of_its_artifact(prepared: Path, tmp_path: Path) -> None:
    _, report = trained_and_served(config_for(prepared, "deeplight", **OPTIONS), tmp_path)
    assert [s["name"] for s in report["stages"]] == ["train", "compact"]
    assert report["stages"][0]["valid_auc"] == report["valid_auc"]  # evaluation saw what is served
    assert 0.12 < report["ratio"] <= 0.2


@pytest.mark.parametrize("kill_at", [5, 13])
def test_a_killed_run_ends_the_same(prepared: Path, tmp_path: Path, kill_at: int) -> None:
    check_a_killed_run_ends_the_same(config_for(prepared, "deeplight", **OPTIONS), tmp_path, kill_at)
