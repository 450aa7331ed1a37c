"""matryoshka: what training draws, and that the served form is the trained rows cut to their widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.errors import UserError
from recsys_emb.serving.artifact import load_artifact
from recsys_emb.serving.compact import write_artifact
from recsys_emb.serving.evaluate import evaluate_artifact
from tests.serving.conftest import train_run

TABLES = (TableSpec("a", 40, init_std=0.1), TableSpec("b", 30, init_std=0.1), TableSpec("c", 20, init_std=0.1))


def built(first_order: bool, budget: int | None = None, **options: Any) -> EmbeddingBackend[Any]:
    spec = GroupSpec(TABLES, 8 + first_order, first_order)
    cls, config = plan_backend("matryoshka", spec, budget, None, options)
    return cls(spec, config)


@pytest.mark.parametrize("first_order", [False, True])
def test_training_draws_a_width_of_the_choices_for_each_id(first_order: bool) -> None:
    backend = built(first_order, choices=[0, 2, 8])
    torch.nn.init.ones_(backend.parts["nested"].table.weight)
    torch.manual_seed(3)
    rows = backend(torch.zeros(9000, dtype=torch.int64), [9000, 0, 0])
    kinds, often = rows.unique(dim=0, return_counts=True)
    weight = [1.0] * first_order
    assert kinds.tolist() == [
        [0.0] * (8 + first_order),
        [1.0] * 2 + [0.0] * 6 + weight,
        [1.0] * 8 + weight,
    ]
    assert all(2800 < n < 3200 for n in often.tolist())  # 3000 +- 45


@pytest.mark.parametrize("first_order", [False, True])
def test_losses_of_all_widths_are_added_up(first_order: bool) -> None:
    backend = built(first_order, choices=[1, 4, 8], losses="sum")
    weight = backend.parts["nested"].table.weight
    ids, counts = torch.tensor([3, 7, 7, 0, 5]), [3, 0, 2]
    scale = torch.randn(len(ids), 8 + first_order)
    total, seen = torch.zeros(()), []
    for _ in backend.forms():
        rows = backend(ids, counts)
        seen.append(int((rows[0, :8] != 0).sum()))
        total = total + (rows * scale).square().sum()
    assert seen == [1, 4, 8]
    total.backward()
    rows = weight.detach()[torch.tensor([3, 7, 7, 70, 75])]
    times = torch.tensor([3.0] + [2.0] * 3 + [1.0] * 4 + [3.0] * first_order)  # how many widths have the column
    expected = torch.zeros_like(weight).index_add_(0, torch.tensor([3, 7, 7, 70, 75]), 2 * rows * scale**2 * times)
    torch.testing.assert_close(weight.grad, expected)
    assert len(list(built(first_order).forms())) == 1
    torch.manual_seed(3)
    assert len({int((r != 0).sum()) for r in built(first_order)(torch.zeros(99).long(), [99, 0, 0])}) > 1


@pytest.mark.parametrize("first_order", [False, True])
def test_it_serves_the_first_columns_of_the_trained_rows(first_order: bool) -> None:
    backend = built(first_order, widths={"a": 3, "b": 0})
    trained = backend.parts["nested"].table.weight.detach().split([40, 30, 20])
    served = backend.compact()
    assert served.name == "field_dim"
    assert served.serving_bytes() == backend.serving_bytes() == 4 * (40 * (3 + first_order) + 20 * (8 + first_order))
    for table, (rows, width) in enumerate(zip(trained, (3, 0, 8))):
        expected = rows.clone()
        expected[:, width:8] = 0
        if not width:
            expected[:] = 0
        for form in (backend, served):
            assert torch.equal(torch.cat(list(form.rows(table))), expected)


def test_choices_are_powers_of_two_unless_given() -> None:
    def choices(dim: int) -> Any:
        return plan_backend("matryoshka", GroupSpec(TABLES, dim))[1].model_dump()["choices"]

    assert [choices(d) for d in (1, 2, 6, 8)] == [(1,), (1, 2), (1, 2, 4, 6), (1, 2, 4, 8)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": [1, 9]}, r"options.choices: 9 is too wide; allowed: 0 to 8$"),
        ({"choices": []}, r"options.choices: .*at least 1 item"),
        ({"choices": [-1]}, r"options.choices.0: .*greater than or equal to 0, got -1"),
        ({"widths": {"d": 1}}, r"options.widths.d: no such table; allowed: a, b, c$"),
        ({}, r"budget: matryoshka cannot fit in 300 bytes; the least it can reach is 360 bytes$"),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(False, 300, **options)


@pytest.mark.parametrize("losses", ["drawn", "sum"])
def test_a_run_under_a_budget_and_its_artifact(prepared: Path, tmp_path: Path, losses: str) -> None:
    run = train_run(prepared, tmp_path / "run", "matryoshka", budget=0.5, options={"losses": losses})
    report = run.report
    assert 0.4 < report["ratio"] <= 0.5
    write_artifact(run, tmp_path / "artifact")
    stored = load_file(tmp_path / "artifact" / "embedding.safetensors")
    assert sum(t.nbytes for t in stored.values()) == report["serving_bytes"]
    assert evaluate_artifact(load_artifact(tmp_path / "artifact"))["auc"] == report["auc"]
