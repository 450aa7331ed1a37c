"""What is special about optembed: thresholds, nested widths, rows under a budget, and what is left of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.embeddings.backends._row_thresholds import LongTailStep
from recsys_emb.embeddings.backends.kept_rows import KeptRowsBackend, KeptRowsConfig, kept_bytes
from recsys_emb.embeddings.backends.optembed import OptEmbedBackend
from recsys_emb.embeddings.base import GroupSpec, TableSpec, backend_registry
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.errors import UserError
from recsys_emb.training import run as running
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from tests.largest import Largest

SIZES = (900, 5, 120)
SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n, init_std=0.05) for i, n in enumerate(SIZES)), 8)
FIRST_ORDER = GroupSpec(SPEC.tables, 9, first_order=True)
SEARCH = {"generations": 6, "parents": 6, "mutations": 8, "crossovers": 8}


def make(spec: GroupSpec = SPEC, budget: int | None = None, **options: Any) -> OptEmbedBackend:
    torch.manual_seed(0)
    cls, config = plan_backend("optembed", spec, budget, None, options)
    backend = cls(spec, config)
    assert isinstance(backend, OptEmbedBackend)
    with torch.no_grad():  # rows of very different norms, as training leaves them
        net = backend.supernet
        net.table.weight.mul_(torch.rand(len(net.table.weight), 1) ** 3)
        net.thresholds.copy_(torch.tensor([0.05, 0.0, 0.02]))
    return backend


def all_ids(spec: GroupSpec = SPEC) -> tuple[Tensor, Tensor]:
    sizes = [t.num_embeddings for t in spec.tables]
    return torch.cat([torch.arange(n) for n in sizes]), torch.tensor(sizes)


# -- the supernet -----------------------------------------------------------------------------------------------------


def test_the_step_is_hard_and_its_gradient_the_long_tail() -> None:
    x = torch.tensor([-2.0, -1.0, -0.7, -0.4, -0.1, 0.0, 0.2, 0.4, 0.9, 1.0, 1.1], requires_grad=True)
    y = LongTailStep.apply(x)
    assert y.tolist() == [0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    y.sum().backward()
    expected = [0, 0.4, 0.4, 0.4, 1.6, 2.0, 1.2, 0.4, 0.4, 0.4, 0]
    assert x.grad.tolist() == pytest.approx(expected)


def surrogate(x: Tensor) -> Tensor:
    """The function whose derivative the long-tailed estimator is: its integral from minus infinity."""
    a = x.abs()
    half = torch.where(a <= 0.4, 2 * a - 2 * a**2, 0.48 + 0.4 * (a.clamp(max=1) - 0.4))
    return 0.72 + torch.sign(x) * half


@pytest.mark.parametrize("spec", [SPEC, FIRST_ORDER], ids=["vectors", "first order"])
def test_gradients_are_those_of_the_surrogate(spec: GroupSpec) -> None:
    """Finite differences in float64 of sum((S(x) + [x > 0] - S(x0)) * ...), which has the hard step's value at x0."""
    backend = make(spec).double()
    net = backend.supernet
    torch.nn.init.normal_(net.table.weight, std=0.03)  # no value near the kink of |x|
    ids, counts = torch.tensor([3, 7, 7, 0, 4, 100, 2]), [3, 2, 2]
    scale = torch.randn(len(ids), spec.embedding_dim, dtype=torch.float64)
    torch.manual_seed(5)
    out = backend(ids, counts)
    torch.manual_seed(5)
    widths = torch.randint(8, ids.shape) + 1
    columns = torch.arange(spec.embedding_dim)
    mask = (columns < widths[:, None]) | (columns >= 8)
    (out * scale).sum().backward()

    table = net.table.weight.detach().clone()
    thresholds = net.thresholds.detach().clone()
    starts = torch.tensor([0, 900, 905]).repeat_interleave(torch.tensor(counts))
    of = torch.arange(3).repeat_interleave(torch.tensor(counts))
    margin0 = table[ids + starts, :8].abs().sum(1) - thresholds[of]

    def loss(table: Tensor, thresholds: Tensor) -> float:
        rows = table[ids + starts]
        margin = rows[:, :8].abs().sum(1) - thresholds[of]
        keep = (margin0 > 0).double() + surrogate(margin) - surrogate(margin0)
        return float((rows * mask * keep[:, None] * scale).sum())

    eps = 1e-6
    for t in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[t] = eps
        slope = (loss(table, thresholds + step) - loss(table, thresholds - step)) / (2 * eps)
        assert net.thresholds.grad[t].item() == pytest.approx(slope, rel=1e-5)
    for row, column in ((3, 0), (7, spec.embedding_dim - 1), (904, 2), (1005, 5)):
        step = torch.zeros_like(table)
        step[row, column] = eps
        slope = (loss(table + step, thresholds) - loss(table - step, thresholds)) / (2 * eps)
        assert net.table.weight.grad[row, column].item() == pytest.approx(slope, rel=1e-5, abs=1e-9)


def test_a_row_below_its_threshold_is_zero_and_others_are_themselves() -> None:
    backend = make().eval()
    net = backend.supernet
    out = backend(*all_ids()).split(SIZES)
    for rows, weight, t in zip(out, net.table.weight.split(SIZES), net.thresholds):
        kept = weight.abs().sum(1) > t
        assert torch.equal(rows, weight * kept[:, None])
    assert 0 < kept.sum() < len(kept)


@pytest.mark.parametrize("spec", [SPEC, FIRST_ORDER], ids=["vectors", "first order"])
def test_widths_are_nested_and_uniform(spec: GroupSpec) -> None:
    backend = make(spec).train()
    net = backend.supernet
    with torch.no_grad():
        net.table.weight.fill_(1.0)
    ids = torch.zeros(16_000, dtype=torch.int64)
    out = backend(ids, [16_000, 0, 0])
    vectors = out[:, :8]
    widths = vectors.sum(1).long()
    assert torch.equal(vectors, (torch.arange(8) < widths[:, None]).float())  # a prefix of the columns
    assert torch.bincount(widths, minlength=9)[1:].tolist() == pytest.approx([2000] * 8, rel=0.15)
    assert torch.equal(out[:, 8:], torch.ones(16_000, spec.embedding_dim - 8))  # a first-order column is kept always


def test_the_loss_gains_alpha_times_the_sum_of_exp() -> None:
    backend = make(alpha=0.5)
    assert backend.aux_loss().item() == pytest.approx(0.5 * sum(np.exp(-t) for t in (0.05, 0.0, 0.02)))
    roles = {g.role: g.lr_scale for g in backend.param_groups()}
    assert roles == {"weight": 1.0, "threshold": 0.1}
    assert backend.search(lambda: 0.0, 1).aux_loss() is None


# -- from the supernet to the rows that stay --------------------------------------------------------------------------


def oracle(backend: OptEmbedBackend, cut: float, widths: tuple[int, ...]) -> Tensor:
    """The rows that a candidate keeps, in plain Python."""
    net, spec = backend.supernet, backend.spec
    out = net.table.weight.detach().clone()
    start = 0
    for table, t, width in zip(spec.tables, net.thresholds.tolist(), widths):
        for row in out[start : start + table.num_embeddings]:
            if row[:8].abs().sum().item() - t <= cut:  # a first-order column decides nothing
                row.zero_()
            row[width : spec.embedding_dim - spec.first_order] = 0
        start += table.num_embeddings
    return out


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.2, 0.05, 0.02])
@pytest.mark.parametrize("spec", [SPEC, FIRST_ORDER], ids=["vectors", "first order"])
def test_kept_rows_are_the_masked_rows_within_the_budget(spec: GroupSpec, ratio: float, tmp_path: Any) -> None:
    budget = int(ratio * spec.full_bytes)
    backend = make(spec, budget, **SEARCH).eval()
    rng = np.random.default_rng(3)
    kept = backend.search(lambda: float(rng.random()), seed=2).eval()
    net, found = backend.supernet, kept.config
    expected = oracle(backend, net.cut, found.widths)
    out = kept(*all_ids(spec))
    torch.testing.assert_close(out, expected, rtol=0, atol=0)
    torch.testing.assert_close(backend(*all_ids(spec)), expected, rtol=0, atol=0)
    # The file is what was reported, and within the budget; what the budget allows is used.
    save_file(kept.compact().state_dict(), tmp_path / "embedding.safetensors")
    stored = sum(t.nbytes for t in load_file(tmp_path / "embedding.safetensors").values())
    assert stored == kept.serving_bytes() == kept_bytes(spec, found) == sum(r.bytes for r in kept.describe()) <= budget
    if net.cut > 0:
        assert stored > budget - 4 * 9 - 4
    assert [r.rows for r in kept.describe() if r.table != "(shared)"] == list(found.rows)
    # From its config and state_dict alone it comes back.
    again = KeptRowsBackend(spec, kept.config)
    again.load_state_dict(load_file(tmp_path / "embedding.safetensors"))
    assert torch.equal(again.eval()(*all_ids(spec)), out)


def test_without_a_budget_rows_above_their_threshold_stay() -> None:
    backend = make(**SEARCH).eval()
    net = backend.supernet
    before = backend(*all_ids())
    compacted = backend.compact()
    assert torch.equal(compacted.eval()(*all_ids()), before)
    found = compacted.config
    assert found.rows == tuple(int((m > 0).sum()) for m in net.margins())


def test_a_table_may_lose_all_rows() -> None:
    backend = make(budget=100)
    kept = backend.search(lambda: 0.0, 1)
    assert kept.serving_bytes() <= 100
    out = kept(*all_ids())
    assert out.shape == (1025, 8)
    assert (out.abs().sum(1) > 0).sum() == sum(kept.config.rows) > 0
    assert 0 in kept.config.rows


def test_the_search_finds_the_widths_of_a_known_optimum_and_repeats() -> None:
    target = torch.tensor([2, 8, 5])
    found = []
    for seed in (1, 1):
        backend = make(generations=30)
        net = backend.supernet
        found.append(backend.search(lambda n=net: -float((n.widths - target).abs().sum()), seed))
    assert found[0].config == found[1].config
    assert found[0].config.widths == (2, 8, 5)
    for a, b in zip(found[0].state_dict().values(), found[1].state_dict().values()):
        assert torch.equal(a, b)


def test_the_score_sees_the_candidate_under_the_budget() -> None:
    """Every candidate that is scored would fit once its rows are kept."""
    budget = int(0.1 * SPEC.full_bytes)
    backend = make(budget=budget, **SEARCH).eval()
    net = backend.supernet
    seen = []

    def score() -> float:
        out = backend(*all_ids()).split(SIZES)
        rows = tuple(int((o.abs().sum(1) > 0).sum()) for o in out)
        widths = tuple(net.widths.tolist())
        assert kept_bytes(SPEC, KeptRowsConfig(widths=widths, rows=rows)) <= budget
        assert all((o[:, w:] == 0).all() for o, w in zip(out, widths))
        seen.append((widths, sum(rows)))
        return float(len(seen))

    backend.search(score, 1)
    wide, narrow = (next(n for w, n in seen if w == (k,) * 3) for k in (8, 1))
    assert narrow > 2 * wide


def test_rows_of_another_moment_are_inherited() -> None:
    """What retraining from the initial weights starts with."""
    backend, other = make(budget=8000, **SEARCH), make(budget=8000, **SEARCH)
    torch.nn.init.normal_(other.supernet.table.weight)
    kept = backend.search(lambda: 0.0, 1).eval()
    was = kept(*all_ids()) != 0
    kept.inherit(other)
    weight = other.supernet.table.weight
    torch.testing.assert_close(kept(*all_ids()), torch.where(was, weight, 0.0))


def test_what_the_search_finds_is_not_an_option() -> None:
    found = {"widths": [1, 1, 1], "rows": [1, 1, 1]}
    with pytest.raises(UserError, match=r"options.widths: unknown key"):
        plan_backend("optembed", SPEC, None, None, found)
    with pytest.raises(UserError, match=r"backend: kept_rows is what a search finds.*; use optembed"):
        plan_backend("kept_rows", SPEC, None, None, found)
    assert "kept_rows" not in backend_registry.names()
    with pytest.raises(UserError, match=r"optembed cannot fit in 10 bytes; the least it can reach is 24 bytes"):
        plan_backend("optembed", SPEC, 10)


def config_for(data: Any, model: dict[str, Any]) -> RunConfig:
    return parse_config(
        {
            "data": {"path": str(data)},
            "model": model,
            "embedding": {"backend": "optembed", "budget": 0.2, "options": {**SEARCH, "generations": 2}},
            "training": {"epochs": 2, "batch_size": 300, "precision": "fp32", "learning_rate": 0.01},
            "device": "cpu",
        }
    )


@pytest.mark.parametrize("model", [{"name": "deepfm", "embedding_dim": 4, "hidden": [8]}, {"name": "lr"}])
def test_a_whole_run_stays_within_its_budget(prepared: Any, tmp_path: Any, model: dict[str, Any]) -> None:
    config = config_for(prepared, model)
    report = running.train(config, tmp_path / "run", Silent())
    assert [s["name"] for s in report["stages"]] == ["supernet", "search", "retrain"]
    assert 0.15 < report["ratio"] <= 0.2
    assert sum(t["bytes"] for t in report["tables"]) == report["serving_bytes"]
    run = load_run(tmp_path / "run")
    restored, _ = running.restore(run)
    assert isinstance(restored.embedding.backend, KeptRowsBackend)
    assert restored.embedding.backend.serving_bytes() == report["serving_bytes"]
    assert running.evaluate(run)["auc"] == report["auc"]


def test_no_step_makes_a_tensor_of_the_vocabularys_size() -> None:
    """Of the found form; the supernet goes through the battery of every backend."""
    spec = GroupSpec((TableSpec("a", 200_000, init_std=0.05), TableSpec("b", 100_000, init_std=0.05)), 4)
    cls, config = plan_backend("optembed", spec, int(0.3 * spec.full_bytes), None, {"generations": 0})
    kept = cls(spec, config).search(lambda: 0.0, 1)
    for part in kept.parts.values():
        part.table.sparse_grad = True
        assert part.index.kind == "bitmap"
    ids, counts = torch.randint(100_000, (60,)), [30, 30]
    with Largest(kept) as largest:
        kept(ids, counts).square().sum().backward()
    assert 240 <= largest.numel < 5000
    assert all(p.grad is not None and p.grad.is_sparse for p in kept.parameters())


class Killed(Exception):
    pass


class KilledAt(Silent):
    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("kill_at", [13, 20])
def test_a_killed_run_draws_and_finds_the_same_again(prepared: Any, tmp_path: Any, kill_at: int) -> None:
    """In the supernet, after its first evaluation; and in the retraining. Stages of 16 steps."""
    config = config_for(prepared, {"name": "deepfm", "embedding_dim": 4, "hidden": [8]})
    whole = running.train(config, tmp_path / "whole", Silent())
    with pytest.raises(Killed):
        running.train(config, tmp_path / "killed", KilledAt(kill_at))
    resumed = running.train(config, tmp_path / "killed", Silent(), resume=True)
    for key in ("auc", "logloss", "valid_auc", "serving_bytes", "training_bytes", "steps", "tables"):
        assert resumed[key] == whole[key], key
