"""TorchRec: uncompressed tables, plain and in 8-bit rows, as the state of its own collections.

OUT/
  collection.json           what the collection is made of, and what the model is
  plain.safetensors         ``state_dict()`` of that ``EmbeddingBagCollection`` (``EmbeddingCollection`` where a model
                            looks at sequences unpooled), float32
  quantized.safetensors     the same of ``torchrec.quant``'s, int8
  dense.safetensors         the rest of the model, under this package's names

A table is a vocabulary, its features are the fields that use it. Of its columns ``columns`` are used, the last of them
each id's first-order weight where ``first_order`` says so; a column of zeros makes their number even where it is not,
since FBGEMM's quantiser takes no other.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    JaggedTensor,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.inference.modules import quantize_embeddings
from torchrec.quant.embedding_modules import EmbeddingCollection as QuantEmbeddingCollection

from recsys_emb.embeddings.torchrec_io import write_rows
from recsys_emb.errors import UserError
from recsys_emb.files import write_json
from recsys_emb.serving.artifact import DENSE, dense_arrays
from recsys_emb.serving.evaluate import logit_error
from recsys_emb.serving.exports.by_field import ByField, random_rows
from recsys_emb.serving.exports.export import Exported

COLLECTION, PLAIN, QUANTIZED = "collection.json", "plain.safetensors", "quantized.safetensors"


def to_torchrec(model: ByField, about: dict[str, Any], path: Path) -> Exported:
    """Writes the folder ``path``.

    Raises:
        UserError: ids are hashes, so that rows cannot be listed.
    """
    backend, schema = model.model.embedding.backend, model.schema
    if backend.spec.hashed:
        raise UserError("--to torchrec: ids are 63-bit hashes, and TorchRec's tables need a row for every id")
    path.mkdir()
    columns = backend.spec.embedding_dim
    tables = [
        {
            "name": table.name,
            "num_embeddings": table.num_embeddings,
            "embedding_dim": columns + columns % 2,
            "feature_names": [f.name for f in schema.embedded if f.vocabulary == table.name],
        }
        for table in backend.spec.tables
    ]
    unpooled = model.model.uses_sequences
    plain = make_collection(tables, unpooled)
    used = {name: weight.zero_()[:, :columns] for name, weight in plain.state_dict().items()}
    write_rows(((t.name, backend, i) for i, t in enumerate(backend.spec.tables)), used)
    quantised = quantise(plain)
    for file, collection in ((PLAIN, plain), (QUANTIZED, quantised)):
        save_file({name: t.contiguous() for name, t in collection.state_dict().items()}, path / file)
    save_file(dense_arrays(model.model), path / DENSE)
    pooling = {} if unpooled else {"pooling": "MEAN"}
    kind = {"collection": type(plain).__name__, **pooling}
    made_of = {**kind, "columns": columns, "first_order": backend.spec.first_order}
    write_json(path / COLLECTION, {**made_of, "tables": tables, "about": about})

    loaded = make_collection(tables, unpooled)
    loaded.load_state_dict(load_file(path / PLAIN))
    quantised.load_state_dict(load_file(path / QUANTIZED))
    rows = random_rows(schema, 256)
    with torch.no_grad():
        moved = logit_error(model(rows), with_collection(model, quantised)(rows))["max"]
    return Exported(with_collection(model, loaded), {"quantized_largest_difference": moved})


def make_collection(tables: list[dict[str, Any]], unpooled: bool) -> EmbeddingBagCollection | EmbeddingCollection:
    """TorchRec's own collection of these tables."""
    if unpooled:
        return EmbeddingCollection([EmbeddingConfig(**copy.deepcopy(t)) for t in tables])
    return EmbeddingBagCollection([EmbeddingBagConfig(**copy.deepcopy(t), pooling=PoolingType.MEAN) for t in tables])


def quantise(collection: EmbeddingBagCollection | EmbeddingCollection) -> nn.Module:
    """TorchRec's own, with 8-bit rows; made on the CPU, since FBGEMM's kernel of cards miscounts beyond 2^31 floats."""
    model: Any = quantize_embeddings(
        nn.Sequential(collection),
        torch.qint8,
        inplace=False,
        additional_qconfig_spec_keys=[EmbeddingCollection],
        additional_mapping={EmbeddingCollection: QuantEmbeddingCollection},
    )
    return model[0]


def with_collection(model: ByField, collection: nn.Module) -> ByField:
    """The model with TorchRec's collection in the place of its embedding."""
    changed = copy.copy(model.model)
    changed._modules = {**changed._modules, "embedding": _Fields(model, collection)}
    return ByField(changed, model.schema).eval()


class _Fields(nn.Module):
    """What ``FieldEmbedding`` gives, by a TorchRec collection."""

    def __init__(self, model: ByField, collection: nn.Module) -> None:
        super().__init__()
        self.collection, self.unpooled = collection, model.model.uses_sequences
        self.pooled_keys, self.width = model.model.embedding.pooled_keys, model.model.embedding.width

    def forward(
        self, sparse: KeyedJaggedTensor, sequences: KeyedJaggedTensor | None
    ) -> tuple[Tensor, dict[str, JaggedTensor]]:
        kjt = sparse if sequences is None else KeyedJaggedTensor.concat([sparse, sequences])
        looked = self.collection(kjt)
        if not self.unpooled:
            return torch.stack([looked[key][:, : self.width] for key in self.pooled_keys], dim=1), {}
        bags = {key: JaggedTensor(b.values()[:, : self.width], lengths=b.lengths()) for key, b in looked.items()}
        pooled = torch.stack([_mean(bags[key]) for key in self.pooled_keys], dim=1)
        return pooled, {key: history for key, history in bags.items() if key not in self.pooled_keys}


def _mean(bags: JaggedTensor) -> Tensor:
    """float [B, D]; empty bags are zero."""
    lengths = bags.lengths()
    return torch.segment_reduce(bags.values(), "sum", lengths=lengths) / lengths.clamp(min=1)[:, None]
