"""What a model says of rows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import tee

import torch

from recsys_emb.data.batches import Batch, on_device
from recsys_emb.distributed.world import World
from recsys_emb.models.base import CTRModel
from recsys_emb.training.metrics import Predictions
from recsys_emb.training.runtime import autocast


@torch.inference_mode()
def predict(
    model: CTRModel,
    batches: Iterable[Batch],
    precision: str,
    world: World = World(),  # noqa: B008  it has no state
) -> Predictions:
    """Predictions of a split in its stored order, or of any batches; those of other processes come after."""
    device = next(model.parameters()).device
    was_training = model.training
    if was_training:  # setting it takes a model of many parts as long as predicting a few rows
        model.eval()
    out = Predictions()
    here, there = tee(batches)
    for batch, uploaded in zip(here, on_device(there, device)):
        with autocast(precision, device):
            logits = model(uploaded)
        out.append(logits, batch.labels, batch.weights, batch.groups)
    if was_training:
        model.train()
    return out.exchanged(world.gather)
