"""What is special about autodim: the mixture of widths, the choice within a budget, and what is trained again."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_emb.embeddings.backends.autodim import AutoDimBackend
from recsys_emb.embeddings.backends.kept_rows import KeptRowsBackend
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.errors import UserError
from recsys_emb.training import run as running
from tests.embeddings.backends.runs import check_a_killed_run_ends_the_same, config_for, trained_and_served

SIZES = (900, 5, 120)
TABLES = tuple(TableSpec(f"t{i}", n, init_std=0.05) for i, n in enumerate(SIZES))
SPEC, FIRST_ORDER = GroupSpec(TABLES, 8), GroupSpec(TABLES, 9, first_order=True)
both = pytest.mark.parametrize("spec", [SPEC, FIRST_ORDER], ids=["vectors", "first order"])


def make(spec: GroupSpec = SPEC, budget: int | None = None, **options: Any) -> AutoDimBackend:
    torch.manual_seed(0)
    cls, config = plan_backend("autodim", spec, budget, None, options)
    backend = cls(spec, config)
    assert isinstance(backend, AutoDimBackend)
    torch.nn.init.normal_(backend.mixture.log_a)
    return backend


def all_ids() -> tuple[Tensor, list[int]]:
    return torch.cat([torch.arange(n) for n in SIZES]), list(SIZES)


@both
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_training_mixes_the_widths_by_a_gumbel_softmax(spec: GroupSpec, temperature: float) -> None:
    backend = make(spec, choices=[8, 2, 5])
    part = backend.mixture
    part.temperature.fill_(temperature)
    ids, counts = torch.tensor([3, 7, 0, 100]), [2, 1, 1]
    torch.manual_seed(5)
    out = backend(ids, counts)
    torch.manual_seed(5)
    noise = torch.rand(3, 3)
    for i, (table, row) in enumerate(((0, 3), (0, 7), (1, 900), (2, 1005))):
        shares = ((part.log_a[table] - torch.log(-torch.log(noise[table]))) / temperature).exp()
        shares = shares / shares.sum()
        weight = part.table.weight[row]
        expected = torch.zeros(spec.embedding_dim)
        for share, width in zip(shares, (2, 5, 8)):
            expected[:width] += share * weight[:width]
        expected[8:] = weight[8:]  # a first-order column is no part of a vector
        torch.testing.assert_close(out[i], expected)
    out.square().sum().backward()
    assert (part.log_a.grad.abs().sum(1) > 0).all() or temperature < 1  # nearly one candidate alone


@both
@pytest.mark.parametrize("ratio", [0.8, 0.5, 0.3, 0.26])
def test_the_choice_is_the_best_that_one_price_gives(spec: GroupSpec, ratio: float) -> None:
    """Of all combinations: none within its bytes is likelier, and no table is wider than the budget allows."""
    budget = int(ratio * spec.full_bytes)
    backend = make(spec, budget).eval()
    part = backend.mixture
    found = tuple(part.found.tolist())
    worth = {w: part.log_a[:, k] for k, w in enumerate(part.choices)}

    def total(widths: tuple[int, ...]) -> float:
        return sum(worth[w][t].item() for t, w in enumerate(widths))

    assert part.nbytes(found) <= budget
    others = [w for w in product(part.choices, repeat=3) if part.nbytes(w) <= part.nbytes(found)]
    assert total(found) == pytest.approx(max(map(total, others)))
    out = backend(*all_ids())
    for rows, weight, width in zip(out.split(SIZES), part.table.weight.split(SIZES), found):
        expected = weight.clone()
        expected[:, width:8] = 0
        assert torch.equal(rows, expected)
    served = backend.compact()
    assert served.serving_bytes() == part.nbytes(found) == sum(t.nbytes for t in served.state_dict().values())
    assert torch.equal(served(*all_ids()), out)


def test_without_a_budget_the_likeliest_widths_are_found() -> None:
    backend = make().eval()
    part = backend.mixture
    assert part.found.tolist() == [part.choices[k] for k in part.log_a.argmax(1).tolist()]


def test_the_temperature_falls_and_roles_say_who_steps() -> None:
    backend = make(cooling=0.2, arch_lr=3.0)
    seen = []
    for step in range(6):
        backend.after_step(step)
        seen.append(backend.mixture.temperature.item())
    assert seen == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.01, 0.01])
    assert {g.role: g.lr_scale for g in backend.param_groups()} == {"weight": 1.0, "arch": 3.0}
    stages = backend.stages(make(every=4, one_in=7).config)
    assert (stages[0].bilevel.every, stages[0].bilevel.one_in) == (4, 7)


def test_mistakes_are_one_line() -> None:
    for options, message in (
        ({"choices": [9]}, r"options.choices: 9 is too wide; allowed: 1 to 8"),
        ({"choices": [0]}, r"options.choices.0: .*greater than or equal to 1"),
        ({"bytes": 4099}, r"options.bytes: 4,099 bytes; allowed: 4,100 to 32,800"),
    ):
        with pytest.raises(UserError, match=message):
            make(**options)
    with pytest.raises(UserError, match=r"autodim cannot fit in 4,099 bytes; the least it can reach is 4,100 bytes"):
        make(SPEC, 4099)


def test_a_run_trains_the_widths_that_evaluation_saw(prepared: Path, tmp_path: Path) -> None:
    config = config_for(prepared, "autodim", choices=[1, 2, 4])
    run, report = trained_and_served(
        config.model_copy(update={"embedding": config.embedding.model_copy(update={"budget": 0.6})}), tmp_path
    )
    assert [s["name"] for s in report["stages"]] == ["mixture", "search", "retrain"]
    assert report["stages"][0]["valid_auc"] == report["stages"][1]["valid_auc"]
    assert 0.4 <= report["ratio"] <= 0.6
    model, _ = running.restore(run)
    assert isinstance(model.embedding.backend, KeptRowsBackend)


@pytest.mark.parametrize("kill_at", [5, 12])
def test_a_killed_run_ends_the_same(prepared: Path, tmp_path: Path, kill_at: int) -> None:
    config = config_for(prepared, "autodim", every=2)
    embedding = config.embedding.model_copy(update={"budget": 0.6})
    check_a_killed_run_ends_the_same(config.model_copy(update={"embedding": embedding}), tmp_path, kill_at)
