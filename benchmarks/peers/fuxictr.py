"""FuxiCTR's side: models put together from its own layers, as its model files do, trained by its own ``train_step``.

That is dense Adam over whole tables and a clipped gradient norm. The package has the layers but not these models. They
get the inputs that ours get: dense features are numbers to the deep and the cross network, and vectors to the
factorization machine and to attention. (FuxiCTR's own model files give vectors of them to all, 624 columns at D = 16
where ours see 429.)
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders.npz_dataloader import NpzDataLoader
from fuxictr.pytorch.layers import (
    CrossNetV2,
    Dice,
    DIN_Attention,
    FactorizationMachine,
    FeatureEmbedding,
    FeatureEmbeddingDict,
    MLP_Block,
    ScaledDotProductAttention,
)
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from benchmarks.peers._columns import Columns, read_columns
from benchmarks.peers._serve import serve

Batch = dict[str, Tensor]


class _Model(BaseModel):
    def __init__(self, features: FeatureMap, folder: Path) -> None:
        super().__init__(features, verbose=0, model_root=str(folder), metrics=["AUC"])
        self._max_gradient_norm = 10.0  # what ``fit`` sets

    def ready(self) -> None:
        self.compile("adam", "binary_crossentropy", 1e-3)
        self.reset_parameters()
        self.model_to_device()


class DeepFM(_Model):
    def __init__(self, features: FeatureMap, folder: Path, dim: int) -> None:
        super().__init__(features, folder)
        self.embedding_layer = FeatureEmbedding(features, dim)
        self.fm = FactorizationMachine(features)
        self.mlp = MLP_Block(flat_width(features, dim), [400, 400, 400], "ReLU", output_dim=1)
        self.ready()

    def forward(self, inputs: Batch) -> Batch:
        x = self.get_inputs(inputs)
        vectors = self.embedding_layer(x)
        logit = self.fm(x, vectors) + self.mlp(flat(self.feature_map, x, vectors))
        return {"y_pred": self.output_activation(logit)}


class DCNv2(_Model):
    def __init__(self, features: FeatureMap, folder: Path, dim: int) -> None:
        super().__init__(features, folder)
        self.embedding_layer = FeatureEmbedding(features, dim)
        width = flat_width(features, dim)
        self.crossnet = CrossNetV2(width, 3)
        self.deep = MLP_Block(width, [400, 400, 400], "ReLU")
        self.fc = nn.Linear(width + 400, 1)
        self.ready()

    def forward(self, inputs: Batch) -> Batch:
        inputs = self.get_inputs(inputs)
        x = flat(self.feature_map, inputs, self.embedding_layer(inputs, feature_type="categorical"))
        both = torch.cat([self.crossnet(x), self.deep(x)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(both))}


def flat_width(features: FeatureMap, dim: int) -> int:
    """Columns of ``flat``."""
    return sum(dim if feature["type"] == "categorical" else 1 for feature in features.features.values())


def flat(features: FeatureMap, inputs: Batch, vectors: Tensor) -> Tensor:
    """Dense features and the vectors of the other fields, which stand last in ``vectors``, side by side."""
    dense = [inputs[name].float().view(-1, 1) for name, f in features.features.items() if f["type"] == "numeric"]
    fields = vectors[:, -(len(features.features) - len(dense)) :]
    return torch.cat([*dense, fields.flatten(start_dim=1)], dim=1)


class _SelfAttention(nn.Module):
    """An interacting layer as FuxiCTR's AutoInt has it."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        out = heads * head_dim
        self.heads, self.head_dim = heads, head_dim
        self.query, self.key, self.value = (nn.Linear(width, out, bias=False) for _ in range(3))
        self.residual = nn.Linear(width, out, bias=False) if width != out else nn.Identity()
        self.attention = ScaledDotProductAttention()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            p(x).view(len(x), -1, self.heads, self.head_dim).transpose(1, 2) for p in (self.query, self.key, self.value)
        )
        out, _ = self.attention(q, k, v)
        out = out.transpose(1, 2).contiguous().view(len(x), -1, self.heads * self.head_dim)
        return (out + self.residual(x)).relu()


class AutoInt(_Model):
    def __init__(self, features: FeatureMap, folder: Path, dim: int) -> None:
        super().__init__(features, folder)
        self.embedding_layer = FeatureEmbedding(features, dim)
        self.attention = nn.Sequential(*(_SelfAttention(64 if layer else dim, 2, 32) for layer in range(3)))
        self.fc = nn.Linear(features.num_fields * 64, 1)
        self.ready()

    def forward(self, inputs: Batch) -> Batch:
        vectors = self.attention(self.embedding_layer(self.get_inputs(inputs)))
        return {"y_pred": self.output_activation(self.fc(vectors.flatten(start_dim=1)))}


class DIN(_Model):
    """Items and their categories are attended jointly."""

    def __init__(self, features: FeatureMap, folder: Path, dim: int) -> None:
        super().__init__(features, folder)
        self.histories = {n: f["share_embedding"] for n, f in features.features.items() if f["type"] == "sequence"}
        self.dim = dim
        self.embedding_layer = FeatureEmbeddingDict(features, dim)
        self.attention = DIN_Attention(len(self.histories) * dim, [64], "Dice")
        hidden = [512, 128, 64]
        self.dnn = MLP_Block(features.sum_emb_out_dim(), hidden, [Dice(n) for n in hidden], output_dim=1)
        self.ready()

    def forward(self, inputs: Batch) -> Batch:
        x = self.get_inputs(inputs)
        vectors = self.embedding_layer(x)
        target = torch.cat([vectors[t] for t in self.histories.values()], dim=-1)
        history = torch.cat([vectors[h] for h in self.histories], dim=-1)
        mask = x[next(iter(self.histories))].long() != 0
        pooled = self.attention(target, history, mask)
        vectors.update(zip(self.histories, pooled.split(self.dim, dim=-1)))
        flat = self.embedding_layer.dict2tensor(vectors, flatten_emb=True)
        return {"y_pred": self.output_activation(self.dnn(flat))}


MODELS = {"deepfm": DeepFM, "dcnv2": DCNv2, "autoint": AutoInt, "din": DIN}


def feature_map(columns: Columns, folder: Path, dim: int) -> FeatureMap:
    """What FuxiCTR's preprocessing would say of these fields."""
    features = FeatureMap("rows", str(folder))
    features.labels, features.default_emb_dim = ["label"], dim
    for name in columns.dense:
        features.features[name] = {"type": "numeric", "source": ""}
    for field in columns.schema["categorical"]:
        size = columns.vocabulary_size(field)
        features.features[field["name"]] = {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": size}
    for field in columns.schema["sequences"]:
        features.features[field["name"]] = {
            "type": "sequence",
            "source": "",
            "padding_idx": 0,
            "vocab_size": columns.vocabulary_size(field),
            "max_len": field["max_length"],
            "share_embedding": field["target"],
        }
    features.num_fields = features.get_num_fields()
    features.set_column_index()
    return features


class Session:
    """Trains and predicts batch by batch: as FuxiCTR's users run it from its own loader, ``tuned`` from memory."""

    def __init__(self, settings: dict[str, Any]) -> None:
        if settings["tuned"]:
            torch.set_float32_matmul_precision("medium")
        torch.manual_seed(1)
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        columns = read_columns(Path(settings["data"]))
        features = feature_map(columns, folder, settings["embedding_dim"])
        self.model = MODELS[settings["model"]](features, folder, settings["embedding_dim"])
        data = OrderedDict({**columns.dense, **columns.ids, **columns.histories, "label": columns.labels})
        self.size = settings["batch_size"]
        if settings["tuned"]:
            self.tensors = {name: torch.from_numpy(values) for name, values in data.items()}
            self.batches, self.test = self._from_memory(), self._from_memory()
        else:
            np.savez(folder / "rows.npz", **data)
            self.batches, self.test = (
                _forever(NpzDataLoader(features, str(folder / "rows"), self.size, shuffle=shuffle))
                for shuffle in (True, False)
            )

    def train(self, batches: int) -> None:
        self.model.train()
        for _ in range(batches):
            self.model.train_step(next(self.batches)).item()

    def predict(self, batches: int) -> None:
        self.model.eval()
        predicted: list[float] = []
        with torch.no_grad():
            for _ in range(batches):  # as in BaseModel.predict
                out = self.model.forward(next(self.test))
                predicted.extend(out["y_pred"].data.cpu().numpy().reshape(-1))

    def _from_memory(self) -> Iterator[Batch]:
        while True:
            yield from (
                dict(zip(self.tensors, parts)) for parts in zip(*(self._split(t) for t in self.tensors.values()))
            )

    def _split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return tensor[: len(tensor) // self.size * self.size].split(self.size)


def _forever(loader: NpzDataLoader) -> Iterator[Batch]:
    while True:
        yield from loader


if __name__ == "__main__":
    serve(Session)
