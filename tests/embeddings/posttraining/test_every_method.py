"""What every post-training method must do; a method joins by being registered."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_emb.embeddings.backends.full import FullBackend
from recsys_emb.embeddings.base import BackendConfig, EmbeddingBackend, GroupSpec, TableSpec, backend_registry
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.posttraining import compress, list_posttraining
from recsys_emb.errors import UserError

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("prune", {"structure": "elements"}),
    ("prune", {"structure": "rows_columns"}),
    ("prune", {"sparsity": 0.7}),
    ("svd", {"weighting": "none"}),
    ("quantized_svd", {"bits": 8, "rank": 5}),
    ("int8", {"range": "symmetric", "scales": "fp16"}),
    ("int4", {"range": "symmetric", "scales": "fp32", "clip_search": False}),
    ("drop_unseen", {"min_count": 3}),
]
CASES = [(name, {}) for name in list_posttraining()] + VARIANTS
every_method = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{o}" if o else n for n, o in CASES])

SIZES = (700, 3, 50, 2000, 1)
DIM = 17
SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n, init_std=0.05) for i, n in enumerate(SIZES)), DIM)
STATS = {t.name: np.sort(np.random.default_rng(1).poisson(3, t.num_embeddings))[::-1].copy() for t in SPEC.tables}


def trained(spec: GroupSpec = SPEC) -> FullBackend:
    """Rows whose scale falls with the id and the column; the out-of-vocabulary row is small."""
    torch.manual_seed(0)
    backend = FullBackend(spec, BackendConfig())
    with torch.no_grad():
        for rows in backend.table.weight.split([t.num_embeddings for t in spec.tables]):
            rows.mul_(1 / torch.arange(1, len(rows) + 1)[:, None].sqrt()).mul_(0.8 ** torch.arange(spec.embedding_dim))
            rows[0] *= 0.1
    return backend


def rows_of(backend: EmbeddingBackend[Any]) -> list[Tensor]:
    return [torch.cat(list(backend.rows(t))) for t in range(len(backend.spec.tables))]


@every_method
def test_stored_bytes_are_those_reported(name: str, options: dict[str, Any]) -> None:
    made = compress(trained(), name, stats=STATS, options=options)
    stored = sum(t.nbytes for t in made.state_dict().values())
    assert made.serving_bytes() == stored == sum(line.bytes for line in made.describe())
    assert stored < SPEC.full_bytes
    assert {line.table for line in made.describe()} - {"(shared)"} == {t.name for t in SPEC.tables}


@every_method
def test_spec_config_and_arrays_are_all_there_is(name: str, options: dict[str, Any]) -> None:
    made = compress(trained(), name, stats=STATS, options=options)
    again = type(made).filled(
        SPEC, type(made.config).model_validate_json(made.config.model_dump_json()), made.state_dict()
    )
    assert [(i.name, i.shape, i.dtype) for i in again.storage()] == [(i.name, i.shape, i.dtype) for i in made.storage()]
    for a, b in zip(rows_of(made), rows_of(again)):
        assert torch.equal(a, b)


@every_method
def test_a_lookup_gives_each_ids_row_whatever_the_counts(name: str, options: dict[str, Any]) -> None:
    made = compress(trained(), name, stats=STATS, options=options)
    whole = rows_of(made)
    generator = np.random.default_rng(0)
    for counts in ([3, 0, 2, 5, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [400, 3, 50, 900, 1]):
        ids = [torch.from_numpy(generator.integers(0, n, c)) for n, c in zip(SIZES, counts)]
        out = made(torch.cat(ids), counts)
        assert out.dtype == torch.float32
        assert out.shape == (sum(counts), DIM)
        torch.testing.assert_close(out, torch.cat([rows[i] for rows, i in zip(whole, ids)]))
    with pytest.raises(IndexError, match="'t1': id 3 is outside"):
        made(torch.tensor([3]), torch.tensor([0, 1, 0, 0, 0]))


@every_method
def test_rows_stay_near_the_trained_ones(name: str, options: dict[str, Any]) -> None:
    before = torch.cat(rows_of(trained()))
    after = torch.cat(rows_of(compress(trained(), name, stats=STATS, options=options)))
    assert (after - before).square().sum() < 0.35 * before.square().sum()


@pytest.mark.parametrize(("name", "options"), [(n, {k: v for k, v in o.items() if k != "sparsity"}) for n, o in CASES])
@pytest.mark.parametrize("ratio", [0.9, 0.5, 0.2, 0.05, 0.01])
def test_a_budget_is_kept_or_refused_with_the_least_bytes(name: str, options: dict[str, Any], ratio: float) -> None:
    budget = int(ratio * SPEC.full_bytes)
    message = ""
    try:
        made = compress(trained(), name, budget, STATS, options)
    except UserError as error:
        message = str(error)
    if message:
        match = re.search(r"the least it can reach is ([\d,]+) bytes$", message)
        assert match, message
        least = int(match[1].replace(",", ""))
        assert least > budget
        made, budget = compress(trained(), name, least, STATS, options), least
    assert made.serving_bytes() <= budget


@pytest.mark.parametrize("name", ["prune", "svd", "drop_unseen"])
def test_methods_that_can_use_what_the_budget_leaves(name: str) -> None:
    budget = SPEC.full_bytes // 3
    made = compress(trained(), name, budget, STATS)
    assert made.serving_bytes() > (0.5 if name == "drop_unseen" else 0.95) * budget


@every_method
@pytest.mark.parametrize("backend", backend_registry.names())
def test_any_trained_backend_will_do(name: str, options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    cls, config = plan_backend(backend, SPEC, None, STATS)
    made = compress(cls(SPEC, config).eval(), name, stats=STATS, options=options)
    assert made.lookup(torch.tensor([0]), [1, 0, 0, 0, 0]).shape == (1, DIM)
    assert not made.training


@every_method
def test_rows_read_in_many_chunks_give_the_same(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(compress(trained(), name, stats=STATS, options=options))
    original = FullBackend.rows
    monkeypatch.setattr(FullBackend, "rows", lambda self, table: original(self, table, chunk=99))
    for a, b in zip(whole, rows_of(compress(trained(), name, stats=STATS, options=options))):
        torch.testing.assert_close(a, b)


@every_method
def test_untrained_rows_of_one_value(name: str, options: dict[str, Any]) -> None:
    """Zeros and constants: no division by zero, nothing that is not a number."""
    backend = trained()
    with torch.no_grad():
        backend.table.weight.zero_()
        backend.table.weight[::3] = 0.125
    made = compress(backend, name, stats=STATS, options=options)
    assert all(r.isfinite().all() for r in rows_of(made))


def test_hashed_ids_are_refused() -> None:
    spec = GroupSpec((TableSpec("a", 2**63 - 1, hashed=True),), 4)
    cls, config = plan_backend("hash", spec, 4000)
    for name in list_posttraining():
        with pytest.raises(UserError, match="'a' holds 63-bit hashes, which have no list"):
            compress(cls(spec, config), name)


def test_unknown_methods_and_options() -> None:
    with pytest.raises(UserError, match=r"unknown post-training method 'int9' .*available: .*int4.*svd"):
        compress(trained(), "int9")
    with pytest.raises(UserError, match=r"unknown key .*min_count"):
        compress(trained(), "drop_unseen", options={"mincount": 1})
