"""What errors of rows cost, against what really happens to the loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recsys_emb.config import parse_config
from recsys_emb.data.store import open_dataset
from recsys_emb.models.base import build_model
from recsys_emb.training import run as running
from recsys_emb.training.sensitivity import PRIOR, relative_effects, sensitivity
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
    assert float(error.double() @ found[name].metric @ error.double()) == pytest.approx(really, rel=0.1)


def test_what_an_id_costs_is_its_own_mean_and_that_of_ids_like_it_where_it_is_seldom_seen() -> None:
    lookups = torch.tensor([0, 400, 0, 100, 0, 0, 0], dtype=torch.float64)
    effects = torch.tensor([0, 0.5, 0, 3, 0, 0, 0], dtype=torch.float64) * lookups
    relative = relative_effects(effects, lookups).tolist()
    # the mean lookup is worth (200 + 300) / 500 = 1; octaves are ids 0, 1 to 2, 3 to 6
    alike = [1.0, *[(200 + PRIOR) / (400 + PRIOR)] * 2, *[(300 + PRIOR) / (100 + PRIOR)] * 4]
    wanted = alike.copy()
    wanted[1] = (200 + PRIOR * alike[1]) / (400 + PRIOR)
    wanted[3] = (300 + PRIOR * alike[3]) / (100 + PRIOR)
    assert relative == pytest.approx(wanted, rel=1e-6)
    assert relative_effects(torch.zeros(3).double(), torch.zeros(3).double()).tolist() == [1, 1, 1]
