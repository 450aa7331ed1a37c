"""L2 by count: what it adds to the gradient, id by id."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from recsys_emb.embeddings.base import TableSpec
from recsys_emb.embeddings.counted_l2 import CountedL2
from recsys_emb.errors import UserError
from tests.builders import make_model, random_batch, tiny_schema

SCHEMA = tiny_schema(dense=0, sequences=True)
COUNTS = {name: np.arange(size) for name, size in SCHEMA.vocabularies.items()}  # id 0 never occurred


@pytest.mark.parametrize("model", ["din", "fm"])
def test_every_id_of_a_batch_is_drawn_to_zero_once(model: str) -> None:
    """Whatever table and fields it is in, and also where histories are averaged."""
    batch, grads = random_batch(SCHEMA, 12), []
    for l2 in (0.0, 3.0):
        made = make_model(model, SCHEMA, hidden=[4]) if model == "din" else make_model(model, SCHEMA)
        backend = made.embedding.backend
        if l2:
            made.embedding.l2 = CountedL2(backend.spec.tables, COUNTS, l2, torch.device("cpu"))
        made(batch).sum().backward()
        grads.append(backend.table.weight.grad)
    expected, start = torch.zeros_like(grads[0]), 0
    bags = batch.sparse.to_dict() | batch.sequences.to_dict()
    for table in backend.spec.tables:
        ids = {i for f in SCHEMA.embedded if f.vocabulary == table.name for i in bags[f.name].values().tolist()}
        for i in ids:
            expected[start + i] = 3.0 / max(i, 1) * backend.table.weight[start + i].detach()
        start += table.num_embeddings
    torch.testing.assert_close(grads[1] - grads[0], expected, rtol=1e-3, atol=1e-4)


def test_it_is_of_training_alone() -> None:
    model, batch = make_model("fm", SCHEMA), random_batch(SCHEMA, 12)
    before = model(batch).detach()
    model.embedding.l2 = CountedL2(model.embedding.backend.spec.tables, COUNTS, 3.0, torch.device("cpu"))
    assert torch.equal(model(batch), before)
    with torch.inference_mode():
        assert torch.equal(model(batch), before)
    model.eval()
    model(batch).sum().backward()
    grad = model.embedding.backend.table.weight.grad
    plain = make_model("fm", SCHEMA).eval()
    plain(batch).sum().backward()
    assert torch.equal(grad, plain.embedding.backend.table.weight.grad)


def test_hashed_ids_have_no_counts() -> None:
    table = dataclasses.replace(TableSpec("user", 2**63 - 1), hashed=True)
    with pytest.raises(UserError, match="l2_by_count: ids of 'user' are hashes, which have no counts"):
        CountedL2([table], {}, 1.0, torch.device("cpu"))
