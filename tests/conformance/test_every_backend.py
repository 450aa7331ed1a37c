"""What every embedding backend must do. A backend joins by being registered; extra rows below try its options."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, TableSpec, backend_registry
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.errors import UserError
from tests.conformance.cases import every_backend
from tests.largest import Largest

SIZES = (700, 3, 50, 2000, 1)
SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n, init_std=0.05) for i, n in enumerate(SIZES)), 16)
STATS = {t.name: np.sort(np.random.default_rng(1).zipf(1.5, t.num_embeddings))[::-1].copy() for t in SPEC.tables}


def build(name: str, options: dict[str, Any], spec: GroupSpec = SPEC, device: str = "cpu") -> EmbeddingBackend[Any]:
    torch.manual_seed(0)
    cls, config = plan_backend(name, spec, None, STATS, options)
    return cls(spec, config, device)


def all_rows(backend: EmbeddingBackend[Any]) -> list[Tensor]:
    return [torch.cat(list(backend.rows(i))) for i in range(len(backend.spec.tables))]


# -- sizing -----------------------------------------------------------------------------------------------------------

CRITEO = (1461, 584, 10131227, 2202608, 306, 24, 12518, 634, 4, 93146, 5684, 8351593, 3195)
CRITEO += (28, 14993, 5461306, 11, 5653, 2173, 4, 7046547, 18, 16, 286181, 105, 142572)
LARGE = GroupSpec(tuple(TableSpec(f"C{i}", n) for i, n in enumerate(CRITEO)), 17)


def least_reachable(name: str, options: dict[str, Any], spec: GroupSpec, stats: Any) -> int:
    with pytest.raises(UserError) as error:
        plan_backend(name, spec, 1, stats, options)
    match = re.search(r"the least it can reach is ([\d,]+) bytes", str(error.value))
    assert match, error.value
    return int(match[1].replace(",", ""))


@every_backend
@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("spec", [SPEC, LARGE], ids=["small", "33.8 million ids"])
def test_planned_bytes_never_exceed_the_budget(
    name: str, options: dict[str, Any], ratio: float, spec: GroupSpec
) -> None:
    budget, stats = int(ratio * spec.full_bytes), None if spec is LARGE else STATS
    least = least_reachable(name, options, spec, stats)
    if budget < least:  # what the error promises must be true, and tight
        with pytest.raises(UserError, match="the least it can reach"):
            plan_backend(name, spec, least - 4, stats, options)
        budget = least
    cls, config = plan_backend(name, spec, budget, stats, options)
    backend = cls(spec, config, "meta")
    assert backend.serving_bytes() <= budget
    assert sum(line.bytes for line in backend.describe()) == backend.serving_bytes()
    assert {line.table.split("[")[0] for line in backend.describe()} - {"(shared)"} == {t.name for t in spec.tables}


@every_backend
def test_planned_bytes_are_those_of_the_built_and_compacted_module(name: str, options: dict[str, Any]) -> None:
    planned = build(name, options, device="meta")
    compacted = build(name, options).compact()
    stored = sum(t.numel() * t.element_size() for t in compacted.state_dict().values())
    assert planned.serving_bytes() == compacted.serving_bytes() == stored
    assert all(p.is_meta for p in planned.parameters())


@every_backend
def test_compacted_rows_are_the_rows(name: str, options: dict[str, Any]) -> None:
    backend = build(name, options).eval()
    before = all_rows(backend)
    for old, new, size in zip(before, all_rows(backend.compact()), SIZES):
        assert old.shape == (size, 16)
        torch.testing.assert_close(new, old)


@every_backend
def test_sizes_given_by_hand_are_kept_and_checked(name: str, options: dict[str, Any]) -> None:
    _, config = plan_backend(name, SPEC, None, STATS, options)
    cls, again = plan_backend(name, SPEC, None, STATS, config.model_dump())
    assert again == config
    needed = cls(SPEC, config, "meta").serving_bytes()
    with pytest.raises(UserError, match="bytes"):
        plan_backend(name, SPEC, needed - 4, STATS, config.model_dump())


@every_backend
def test_vectors_start_at_the_scale_of_a_full_table(name: str, options: dict[str, Any]) -> None:
    rows = all_rows(build(name, options))
    for table in (rows[0], rows[3]):
        assert 0.03 < table.std() < 0.08
        assert 0.2 < (table > 0).float().mean() < 0.8


# -- ids --------------------------------------------------------------------------------------------------------------


@st.composite
def some_ids(draw: st.DrawFn) -> list[list[int]]:
    """For every table a few ids, or none; the first and the last often."""
    edges = [st.sampled_from([0, n - 1]) | st.integers(0, n - 1) for n in SIZES]
    return [draw(st.lists(ids, max_size=4)) for ids in edges]


@pytest.fixture
def with_rows(name: str, options: dict[str, Any]) -> tuple[EmbeddingBackend[Any], list[Tensor]]:
    backend = build(name, options).eval()
    return backend, all_rows(backend)


@every_backend
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=some_ids())
def test_a_lookup_gives_each_ids_row_whatever_the_counts(
    with_rows: tuple[EmbeddingBackend[Any], list[Tensor]], ids: list[list[int]]
) -> None:
    backend, rows = with_rows
    flat = torch.tensor([x for table in ids for x in table], dtype=torch.int64)
    out = backend(flat, [len(x) for x in ids])
    assert out.dtype == torch.float32
    assert out.shape == (len(flat), 16)
    expected = torch.cat([rows[t][torch.tensor(x, dtype=torch.int64)] for t, x in enumerate(ids)])
    torch.testing.assert_close(out, expected)


@every_backend
@pytest.mark.parametrize(("table", "bad"), [(0, 700), (0, -1), (3, 2000), (4, 1), (3, 2**63 - 1)])
def test_an_id_out_of_range_names_table_id_and_size(name: str, options: dict[str, Any], table: int, bad: int) -> None:
    backend = build(name, options)
    counts = [0] * len(SIZES)
    counts[table] = 2
    with pytest.raises(IndexError, match=rf"'t{table}': id {bad} is outside 0\.\.{SIZES[table] - 1}$"):
        backend(torch.tensor([0, bad]), counts)


# -- training ---------------------------------------------------------------------------------------------------------


@every_backend
def test_a_step_costs_what_the_batch_costs(name: str, options: dict[str, Any]) -> None:
    spec = GroupSpec((TableSpec("a", 300_000), TableSpec("b", 200_000), TableSpec("c", 7)), 4)
    stats = {t.name: np.arange(t.num_embeddings, 0, -1) for t in spec.tables}
    cls, config = plan_backend(name, spec, None, stats, options)
    backend = cls(spec, config)
    tables = [m for m in backend.modules() if isinstance(m, EmbeddingTable)]
    for table in tables:
        table.sparse_grad = True
    ids = torch.cat([torch.randint(0, t.num_embeddings, (20,)) for t in spec.tables])
    with Largest(backend) as largest:
        loss = backend(ids, [20, 20, 20]).square().sum()
        if (aux := backend.aux_loss()) is not None:
            loss = loss + aux
        loss.backward()
        backend.after_backward(0)
    # 60 ids x 4 columns, or the rows that a method multiplies out, or weights outside tables; the full tables have 2
    # million floats.
    widest, outside = (
        max(p.shape[-1] for p in backend.parameters()),
        max(map(Tensor.numel, _outside(backend)), default=0),
    )
    assert 240 <= largest.numel < max(5000, 60 * widest + 1, outside + 1)
    sparse = [t.weight.grad.is_sparse for t in tables if t.weight.grad is not None]
    assert all(sparse)
    assert bool(sparse) == bool(tables)


@every_backend
def test_large_weights_are_embedding_tables(name: str, options: dict[str, Any]) -> None:
    backend = build(name, options, device="meta", spec=GroupSpec((TableSpec("a", 10**6), TableSpec("b", 10**5)), 16))
    if any(isinstance(m, EmbeddingTable) for m in backend.modules()):  # or it computes vectors, and has only weights
        assert sum(p.numel() for p in _outside(backend)) < 20_000  # the tables have 17.6 million floats


def _outside(backend: EmbeddingBackend[Any]) -> list[torch.nn.Parameter]:
    """The parameters that are not rows of a table."""
    tables = [m.weight for m in backend.modules() if isinstance(m, EmbeddingTable)]
    return [p for p in backend.parameters() if not any(p is t for t in tables)]


# -- hashed ids -------------------------------------------------------------------------------------------------------

HASHED = GroupSpec(tuple(TableSpec(f"t{i}", 2**63 - 1, init_std=0.05, hashed=True) for i in range(3)), 16)


@pytest.mark.parametrize("name", backend_registry.names())
def test_hashed_ids_are_served_within_bytes_or_refused_in_one_line(name: str) -> None:
    options = {"modulus": 10_000} if name == "qr" else {}
    if backend_registry.get(name).needs_id_list:
        with pytest.raises(UserError, match=f"{name} needs the list of ids"):
            plan_backend(name, HASHED, 100_000, None, options)
        return
    for budget in (None, int(0.1 * HASHED.full_bytes)):
        with pytest.raises(UserError, match="give bytes such as 20MB"):
            plan_backend(name, HASHED, budget, None, options)
    cls, config = plan_backend(name, HASHED, 100_000, None, options)
    backend = cls(HASHED, config)
    assert 90_000 < backend.serving_bytes() <= 100_000
    out = backend(torch.tensor([0, 2**62, 2**63 - 2, 5, 5]), [2, 1, 2])
    assert out.shape == (5, 16)
    assert torch.equal(out[3], out[4])
    assert len(out.unique(dim=0)) == 4
    with pytest.raises(UserError, match="63-bit hashes"):
        next(backend.rows(0))
