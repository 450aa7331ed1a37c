"""What errors of rows cost, against what really happens to the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys_emb.config import parse_config
from recsys_emb.data.store import open_dataset
from recsys_emb.models.base import build_model
from recsys_emb.training import run as running
from recsys_emb.training.sensitivity import sensitivity
from recsys_emb.training.stage_runner import split_loader


def test_it_foretells_how_logits_move_when_rows_are_disturbed(prepared: Path) -> None:
    config = parse_config(
        {
            "data": {"path": str(prepared)},
            "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [8]},
            "device": "cpu",
        }
    )
    dataset = open_dataset(prepared)
    torch.manual_seed(2)
    model = build_model(config.model, dataset.schema, running.plan(config, dataset).build()).eval()
    batches = list(split_loader(dataset, "train", config))
    backend = model.embedding.backend
    found = sensitivity(model, batches)
    assert model.embedding.backend is backend

    name = backend.spec.tables[0].name
    error = 1e-2 * torch.randn(backend.spec.embedding_dim)
    with torch.no_grad():
        before = torch.cat([model(b) for b in batches])
        size = backend.spec.tables[0].num_embeddings
        next(backend.parameters())[:size] += error  # every id of the first table
        moved = torch.cat([model(b) for b in batches]) - before
        p = torch.sigmoid(before)
        really = float((p * (1 - p) * moved.square()).mean())
    assert float(error.double() @ found[name] @ error.double()) == pytest.approx(really, rel=0.1)
