"""DeepCTR-Torch's side: its own models with its own defaults, trained as its ``fit`` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.peers._columns import Columns, read_columns
from benchmarks.peers._serve import serve

_start = Thread.start
Thread.start = lambda self: None  # type: ignore[method-assign]  # the package asks the network for a newer version
from deepctr_torch import inputs, models  # noqa: E402

Thread.start = _start  # type: ignore[method-assign]


def build(name: str, columns: Columns, dim: int) -> models.basemodel.BaseModel:
    """A model of the package. Its AutoInt has heads of D / 2 columns, over which no dense feature attends."""
    schema = columns.schema
    sizes = {f["name"]: columns.vocabulary_size(f) for f in schema["categorical"]}
    fields: list[Any] = [inputs.SparseFeat(n, size, embedding_dim=dim) for n, size in sizes.items()]
    fields += [inputs.DenseFeat(n, 1) for n in columns.dense]
    if name == "deepfm":
        return models.DeepFM(fields, fields, dnn_hidden_units=(400, 400, 400))
    if name == "dcnv2":
        return models.DCN(fields, fields, 3, "matrix", dnn_hidden_units=(400, 400, 400))
    if name == "autoint":
        return models.AutoInt(fields, fields, att_layer_num=3, att_head_num=2, dnn_hidden_units=())
    for sequence in schema["sequences"]:
        target = sequence["target"]
        past = inputs.SparseFeat(f"hist_{target}", sizes[target], dim, embedding_name=target)
        fields.append(inputs.VarLenSparseFeat(past, sequence["max_length"], length_name="length"))
    targets = [s["target"] for s in schema["sequences"]]
    # Its Dice works in the attention only: beside it the deep network has ReLU.
    return models.DIN(fields, targets, dnn_hidden_units=(512, 128, 64), att_hidden_size=(64,))


class Session:
    """Trains and predicts batch by batch: as its users run it through a DataLoader, ``tuned`` from memory."""

    def __init__(self, settings: dict[str, Any]) -> None:
        if settings["tuned"]:
            torch.set_float32_matmul_precision("medium")
        columns = read_columns(Path(settings["data"]))
        self.model = build(settings["model"], columns, settings["embedding_dim"])
        self.model.compile("adam", "binary_crossentropy")
        past = {f"hist_{s['target']}": _front(columns, s["name"]) for s in columns.schema["sequences"]}
        values = {**columns.ids, **columns.dense, **past, "length": columns.lengths}
        parts = [values[name] for name in self.model.feature_index]
        x = torch.from_numpy(np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1))
        rows = TensorDataset(x, torch.from_numpy(columns.labels))
        size = settings["batch_size"]
        if settings["tuned"]:
            self.batches = self.test = _from_memory(rows, size)
        else:
            self.batches, self.test = (_forever(DataLoader(rows, size, shuffle=shuffle)) for shuffle in (True, False))

    def train(self, batches: int) -> None:
        """The body of ``BaseModel.fit``."""
        model = self.model.train()
        for _ in range(batches):
            x, y = next(self.batches)
            predicted = model(x.float()).squeeze(-1)
            model.optim.zero_grad()
            loss = model.loss_func(predicted, y.float(), reduction="sum")
            total = loss + model.get_regularization_loss() + model.aux_loss
            loss.item()
            total.item()
            total.backward()
            model.optim.step()

    def predict(self, batches: int) -> None:
        """The body of ``BaseModel.predict``."""
        model = self.model.eval()
        with torch.no_grad():
            predicted = [model(next(self.test)[0].float()).cpu().data.numpy() for _ in range(batches)]
        np.concatenate(predicted).astype("float64")


def _front(columns: Columns, name: str) -> np.ndarray:
    """Histories padded behind, not before: the lengths say where they end."""
    assert columns.lengths is not None
    padded = columns.histories[name]
    at = np.arange(padded.shape[1]) + (padded.shape[1] - columns.lengths)[:, None]
    kept = at < padded.shape[1]
    return np.take_along_axis(padded, np.where(kept, at, 0), axis=1) * kept


def _from_memory(rows: TensorDataset, size: int) -> Iterator[tuple[Tensor, ...]]:
    whole = len(rows) // size * size
    while True:
        yield from zip(*(t[:whole].split(size) for t in rows.tensors))


def _forever(loader: DataLoader) -> Iterator[tuple[Tensor, ...]]:
    while True:
        yield from loader


if __name__ == "__main__":
    serve(Session)
