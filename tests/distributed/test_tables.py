"""Backends made in pieces: what a process fills its part with is what the whole would have got."""

from __future__ import annotations

import pytest
import torch

from recsys_emb.distributed.tables import materialize
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, TableSpec, backend_registry
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.tables import EmbeddingTable

SPEC = GroupSpec((TableSpec("a", 1000), TableSpec("b", 7, init_std=0.3), TableSpec("c", 300)), 5, first_order=True)


def made(name: str, device: str) -> EmbeddingBackend:
    options = {"importance": True} if name == "multi_hash" else {}
    cls, config = plan_backend(name, SPEC, None if name == "full" else SPEC.full_bytes * 7 // 10, options=options)
    return cls(SPEC, config, device)


def again(table: EmbeddingTable) -> EmbeddingTable:
    return EmbeddingTable(table.num_rows, table.weight.shape[1], table.init, "meta").to_empty(device="cpu")


@pytest.mark.parametrize("name", [*backend_registry.names(), "modulo"])
def test_filled_later_is_filled_alike(name: str) -> None:
    torch.manual_seed(3)
    direct = made(name, "cpu")
    after = torch.rand(3)
    torch.manual_seed(3)
    later = materialize(made(name, "meta"), torch.device("cpu"), again)
    torch.testing.assert_close(torch.rand(3), after, rtol=0, atol=0)  # as many random numbers
    assert direct.state_dict().keys() == later.state_dict().keys()
    for key, value in direct.state_dict().items():
        torch.testing.assert_close(later.state_dict()[key], value, rtol=0, atol=0)


def test_a_backend_that_cannot_fill_its_parameters_is_named() -> None:
    backend = made("full", "meta")
    backend.bias = torch.nn.Parameter(torch.empty(3, device="meta"))
    with pytest.raises(ValueError, match=r"full: the backend has parameters but no reset_parameters\(\)"):
        materialize(backend, torch.device("cpu"), again)
