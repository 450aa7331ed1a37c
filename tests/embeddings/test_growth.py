"""Trained weights in tables of more ids, for every method that can grow: known ids keep their vectors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recsys_emb.embeddings.base import GroupSpec, TableSpec, backend_registry
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.growth import NewIds, blocks_of, grown_rows, new_rows, take_over
from recsys_emb.embeddings.tables import EmbeddingTable, RowInit
from recsys_emb.errors import SettingError

BEFORE = GroupSpec((TableSpec("user", 300), TableSpec("day", 7), TableSpec("item", 90)), 9, first_order=True)
AFTER = GroupSpec((TableSpec("user", 420), TableSpec("day", 8), TableSpec("item", 90)), 9, first_order=True)
COUNTS = [t.num_embeddings for t in BEFORE.tables]
GROWING = [name for name in backend_registry.names() if backend_registry.get(name).grows]
CASES: list[tuple[str, int | None, dict[str, Any]]] = [
    *((name, None, {}) for name in GROWING),
    *((name, 6000, {}) for name in GROWING if name not in ("full", "dhe")),
    ("qr", 6000, {"combine": "add", "partitions": 3}),
    ("multi_hash", 9000, {"importance": True}),
    ("mixed_dim", 6000, {"by": "popularity"}),
]


def stats() -> dict[str, Any]:
    """Counts that fall with the id."""
    return {t.name: torch.arange(t.num_embeddings, 0, -1).square().numpy() for t in BEFORE.tables}


def ids_of(spec: GroupSpec) -> torch.Tensor:
    return torch.cat([torch.arange(t.num_embeddings) for t in spec.tables])


def grown(name: str, budget: int | None, options: dict[str, Any], new_ids: NewIds = "mean") -> tuple[Any, Any]:
    """A backend of other than its initial weights, and its successor in the larger tables."""
    cls, config = plan_backend(name, BEFORE, budget, stats(), options)
    torch.manual_seed(1)
    source = cls(BEFORE, config)
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    target = cls(AFTER, cls.grown(config, BEFORE, AFTER))
    take_over(target, source, new_ids)
    return source.eval(), target.eval()


def test_the_methods_that_grow() -> None:
    assert {"full", "hash", "multi_hash", "qr", "unified", "robe", "low_rank", "mixed_dim", "field_dim"} <= set(GROWING)


@pytest.mark.parametrize(("name", "budget", "options"), CASES)
def test_known_ids_keep_their_vectors(name: str, budget: int | None, options: dict[str, Any]) -> None:
    source, target = grown(name, budget, options)
    known = ids_of(BEFORE)
    assert torch.equal(target(known, COUNTS), source(known, COUNTS))
    every = target(ids_of(AFTER), [t.num_embeddings for t in AFTER.tables])
    assert every.isfinite().all()
    assert len(every) == AFTER.num_embeddings


def test_own_rows_of_new_ids() -> None:
    source, target = grown("full", None, {}, "oov")
    rows = next(iter(target.rows(0)))
    assert torch.equal(rows[300:], rows[:1].expand(120, -1))
    source, target = grown("full", None, {}, "mean")
    assert torch.allclose(next(iter(target.rows(0)))[300:], next(iter(source.rows(0))).mean(0).expand(120, -1))
    assert torch.allclose(next(iter(target.rows(1)))[7:], next(iter(source.rows(1))).mean(0, keepdim=True))
    _, target = grown("full", None, {}, "random")
    fresh = next(iter(target.rows(0)))[300:]
    assert fresh.abs().max() <= 0.01 * 3**0.5  # as a new table: uniform of deviation 0.01
    assert fresh.std() > 0.005


def test_shared_rows_stay_as_they_are() -> None:
    source, target = grown("unified", 6000, {}, "mean")
    assert target.serving_bytes() == source.serving_bytes()
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values()))


def test_a_range_without_the_row_of_unknown_values_has_none_to_begin_as() -> None:
    with pytest.raises(SettingError, match="new_ids: oov: mixed_dim has ranges of ids without such a row; use mean"):
        grown("mixed_dim", 6000, {"by": "popularity"}, "oov")


@pytest.mark.parametrize("name", ["tt_rec", "dpq", "cafe", "optembed"])
def test_a_method_that_cannot_grow_says_which_can(name: str) -> None:
    cls = backend_registry.get(name)
    with pytest.raises(SettingError, match=rf"backend: {name} cannot go on with more ids; those that can: .*full"):
        cls.grown(cls.Config(), BEFORE, AFTER)


def test_state_of_rows_moves_with_them() -> None:
    old = EmbeddingTable(5, 2, [RowInit(3, 0.1), RowInit(2, 0.1)])
    new = EmbeddingTable(8, 2, [RowInit(4, 0.1), RowInit(4, 0.1)])
    blocks = blocks_of(old, new)
    assert blocks is not None
    assert grown_rows(torch.arange(1, 6), blocks).tolist() == [1, 2, 3, 0, 4, 5, 0, 0]
    assert new_rows(blocks).tolist() == [3, 6, 7]
    assert blocks_of(new, old) is None
