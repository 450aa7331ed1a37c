"""field_dim: hand-computed plans, padded rows against plain slices, runs and artifacts with every width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recsys_emb.config import parse_config
from recsys_emb.embeddings.backends.field_dim import FieldDimBackend
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.errors import UserError
from recsys_emb.serving.artifact import load_artifact
from recsys_emb.serving.compact import write_artifact
from recsys_emb.serving.evaluate import evaluate_artifact
from recsys_emb.training.optimizers import CatchUpAdam
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train
from recsys_emb.training.run_dir import load_run


def spec_of(*sizes: int, dim: int = 16, first_order: bool = False) -> GroupSpec:
    tables = tuple(TableSpec(f"t{i}", n, init_std=0.1) for i, n in enumerate(sizes))
    return GroupSpec(tables, dim + first_order, first_order)


def built(spec: GroupSpec, budget: int | None = None, **options: Any) -> FieldDimBackend:
    cls, config = plan_backend("field_dim", spec, budget, None, options)
    backend = cls(spec, config)
    assert isinstance(backend, FieldDimBackend)
    return backend


@pytest.mark.parametrize(
    ("floats", "first_order", "widths"),
    [
        (1110, False, [1, 1, 1]),
        (1110 + 105, False, [8, 1, 1]),  # to 2: 10, after which 100 is too much; 20; 40
        (3330, False, [3, 3, 3]),
        # 2 columns leave 1109. To 4: 20 and 200, but not 2000; to 8: 40 and 400; to 16: 80, but not 800.
        (3329, False, [16, 8, 2]),
        (3330 + 130, False, [4, 4, 3]),  # the next power of two after 3: 10 and 100
        (16 * 1110, False, [16, 16, 16]),
        (2 * 1110, True, [1, 1, 1]),
        (2 * 1110 + 130, True, [4, 2, 1]),  # to 2: 10 and 100; to 4: 20
        (10**9, True, [16, 16, 16]),
    ],
)
def test_the_largest_uniform_width_then_powers_of_two_from_the_smallest_table_on(
    floats: int, first_order: bool, widths: list[int]
) -> None:
    backend = built(spec_of(10, 100, 1000, first_order=first_order), 4 * floats)
    assert backend.config.widths == dict(zip(("t0", "t1", "t2"), widths))
    stored = sum(n * (w + first_order) for n, w in zip((10, 100, 1000), widths))
    assert backend.serving_bytes() == 4 * stored <= 4 * floats


def test_widths_by_name_and_the_rest_by_default() -> None:
    spec = spec_of(10, 100, 1000)
    assert built(spec, widths={"t2": 3}).config.widths == {"t0": 16, "t1": 16, "t2": 3}
    assert built(spec, widths={"t2": 0}, default_width=5).config.widths == {"t0": 5, "t1": 5, "t2": 0}
    assert built(spec, default_width=0).serving_bytes() == 0
    assert built(spec, 4 * (5 * 110), widths={"t2": 0}, default_width=5).serving_bytes() == 4 * 550


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": {"t7": 4}}, r"options.widths.t7: no such table; allowed: t0, t1, t2$"),
        ({"widths": {"t1": 17}}, r"options.widths.t1: 17 is too wide; allowed: 0 to 16$"),
        ({"widths": {"t1": -1}}, r"options.widths.t1: .*greater than or equal to 0, got -1"),
        ({"default_width": 17}, r"options.default_width: 17 is too wide; allowed: 0 to 16$"),
        (
            {"default_width": 4},
            r"budget: field_dim .* 20,000 bytes; the least it can reach is 22,200 bytes$",
        ),
        ({}, r"budget: field_dim cannot fit in 20,000 bytes; the least it can reach is 44,400 bytes$"),
    ],
)
def test_mistakes_name_the_key_and_what_is_allowed(options: dict[str, Any], message: str) -> None:
    spec = spec_of(10, 100, 1000, first_order=True) if "default_width" in options else spec_of(10, 100, 10_990)
    with pytest.raises(UserError, match=message):
        plan_backend("field_dim", spec, 20_000, None, options)


@pytest.mark.parametrize("first_order", [False, True])
def test_a_row_is_the_first_columns_of_the_one_it_was_given(first_order: bool) -> None:
    spec = spec_of(10, 20, 30, 40, 50, dim=4, first_order=first_order)
    widths = [2, 4, 0, 1, 2]
    backend = built(spec, widths=dict(zip((t.name for t in spec.tables), widths)))
    full = [torch.randn(t.num_embeddings, spec.embedding_dim) for t in spec.tables]
    for i, rows in enumerate(full):
        backend.load_rows(i, rows)
    expected = [plain_cut(rows, width, first_order) for rows, width in zip(full, widths)]
    for i, rows in enumerate(expected):
        assert torch.equal(torch.cat(list(backend.rows(i))), rows)
    ids = [torch.randint(t.num_embeddings, (7,)) for t in spec.tables]
    out = backend(torch.cat(ids), torch.full((5,), 7))
    assert torch.equal(out, torch.cat([rows[i] for rows, i in zip(expected, ids)]))
    assert [(x.table, x.rows, x.form) for x in backend.describe()] == [
        ("t0", 10, "padded"), ("t1", 20, "full"), ("t2", 0, "left out"), ("t3", 40, "padded"), ("t4", 50, "padded"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"table 't1': its rows have shape"):
        backend.load_rows(1, torch.zeros(20, 2))


@pytest.mark.parametrize("first_order", [False, True])
def test_a_narrow_vector_is_drawn_as_long_as_a_wide_one(first_order: bool) -> None:
    spec = spec_of(50_000, 50_000, 50_000, dim=8, first_order=first_order)
    backend = built(spec, widths={"t0": 8, "t1": 7, "t2": 1})
    std = spec.tables[0].init_std
    for table, width in enumerate([8, 7, 1]):
        rows = torch.cat(list(backend.rows(table)))
        assert float(rows[:, :8].square().sum(1).mean()) == pytest.approx(8 * std**2, rel=0.03)
        assert (rows[:, width:8] == 0).all()
        assert rows.shape[1] == 8 or float(rows[:, 8].std()) == pytest.approx(std, rel=0.05)


def plain_cut(rows: Tensor, width: int, first_order: bool) -> Tensor:
    """A column at a time: the last one is the id's own weight and stays, unless the width is 0."""
    out = torch.zeros_like(rows)
    for column in range(rows.shape[1]):
        own_weight = first_order and column == rows.shape[1] - 1
        if column < width or (own_weight and width):
            out[:, column] = rows[:, column]
    return out


@pytest.mark.parametrize("model", [{"name": "deepfm", "embedding_dim": 4, "hidden": [8]}, {"name": "lr"}])
@pytest.mark.parametrize("optimizer", ["adam", "rowwise_adagrad"])
def test_a_run_with_every_width_and_its_artifact(
    prepared: Path, tmp_path: Path, model: dict[str, Any], optimizer: str
) -> None:
    widths = {"C1": 0, "C2": 1, "C3": 1, "C4": 0}
    config = parse_config(
        {
            "data": {"path": str(prepared)},
            "model": model,
            "embedding": {"backend": "field_dim", "options": {"widths": widths, "default_width": 1}},
            "training": {"epochs": 2, "batch_size": 300, "embedding_optimizer": optimizer, "precision": "fp32"},
            "device": "cpu",
        }
    )
    report = train(config, tmp_path / "run", Silent())
    tables = {t["name"]: t for t in report["tables"]}
    assert tables["C1"]["bytes"] == tables["C4"]["bytes"] == 0
    assert tables["C3"]["bytes"] == 4 * tables["C3"]["ids"] * (1 if model["name"] == "lr" else 2)
    write_artifact(load_run(tmp_path / "run"), tmp_path / "artifact")
    stored = load_file(tmp_path / "artifact" / "embedding.safetensors")
    assert sum(t.nbytes for t in stored.values()) == report["serving_bytes"]
    assert evaluate_artifact(load_artifact(tmp_path / "artifact"))["auc"] == report["auc"]


def test_a_table_one_column_narrower_learns_as_the_same_columns_of_a_full_one() -> None:
    """Same start, same gradients: Adam's step and L2 act alike on what both store, the first-order column included."""
    spec, gradient = spec_of(40, first_order=True), torch.randn(40, 17)
    wide, narrow = built(spec), built(spec, widths={"t0": 15})
    rows = torch.randn(40, 17) * 0.1
    kept = [*range(15), 16]
    for backend in (wide, narrow):
        backend.load_rows(0, rows)
        (table,) = (m for m in backend.modules() if isinstance(m, EmbeddingTable))
        optimizer = CatchUpAdam(table, lr=1e-2, l2=1e-2)
        for step in range(30):
            ids = torch.arange(step % 2, 40, 2)
            (backend(ids, torch.tensor([len(ids)])) * gradient[ids]).sum().backward()
            optimizer.step()
        optimizer.catch_up()
    after = [next(backend.rows(0))[:, kept] for backend in (wide, narrow)]
    assert not torch.allclose(after[0], rows[:, kept], atol=0.05)
    torch.testing.assert_close(after[0], after[1], rtol=0, atol=1e-7)
