"""Independent arithmetic in float64: a batch's rows looked up one by one, and networks walked layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from recsys_emb.data.batches import Batch
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.embeddings.backends.full import FullBackend
from recsys_emb.models.base import CTRModel
from recsys_emb.models.layers import BatchNorm, Dice


@dataclass
class Row:
    """One row: dense [Nd]; fields [F, width], multi-valued ones averaged; histories by name, [length, width]."""

    dense: np.ndarray
    fields: np.ndarray
    histories: dict[str, np.ndarray]

    @property
    def vectors(self) -> np.ndarray:
        """Without the first-order column."""
        return self.fields[:, :-1]

    @property
    def first_order(self) -> np.ndarray:
        return self.fields[:, -1]


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def rows(model: CTRModel, schema: DatasetSchema, batch: Batch) -> list[Row]:
    """The batch's rows; sequences are averaged into fields for models that do not use them."""
    backend = model.embedding.backend
    assert isinstance(backend, FullBackend)
    tables, start = {}, 0
    for spec in backend.spec.tables:
        tables[spec.name] = array(backend.table.weight[start : start + spec.num_embeddings])
        start += spec.num_embeddings
    sparse = batch.sparse.to_dict()
    history = {} if batch.sequences is None else batch.sequences.to_dict()
    out = []
    for b in range(len(batch)):
        fields, histories = [], {}
        for field in schema.embedded:
            is_history = field.name in history
            bag = (history if is_history else sparse)[field.name]
            start = int(bag.lengths()[:b].sum())
            vectors = tables[field.vocabulary][bag.values()[start : start + int(bag.lengths()[b])].numpy()]
            if is_history and model.uses_sequences:
                histories[field.name] = vectors
            else:
                fields.append(vectors.mean(0) if len(vectors) else np.zeros(vectors.shape[1]))
        out.append(Row(array(batch.dense[b]), np.stack(fields), histories))
    return out


def network(module: nn.Module, x: np.ndarray) -> np.ndarray:
    """An MLP, a logit or a sequence of them on one row [in] in eval mode."""
    if isinstance(module, nn.Sequential):
        for layer in module:
            x = network(layer, x)
        return x
    if isinstance(module, nn.Linear):
        x = array(module.weight) @ x
        return x if module.bias is None else x + array(module.bias)
    if isinstance(module, nn.ReLU):
        return np.maximum(x, 0)
    if isinstance(module, BatchNorm):
        x = (x - array(module.running_mean)) / np.sqrt(array(module.running_var) + module.eps)
        return x if module.weight is None else x * array(module.weight) + array(module.bias)
    if isinstance(module, Dice):
        p = 1 / (1 + np.exp(-network(module.norm, x)))
        return p * x + (1 - p) * array(module.alpha) * x
    assert isinstance(module, nn.Dropout), module
    return x


def logits(model: CTRModel, batch: Batch) -> np.ndarray:
    """What the model itself gives in eval mode."""
    model.eval()
    with torch.no_grad():
        return model(batch).numpy()
