"""Models and serving forms that exports are tested on, and the README's table of them.

python -m tests.serving.export_cases    # prints the table
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recsys_emb.data.schema import CategoricalField, DatasetSchema, SequenceField
from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.base import EmbeddingBackend, backend_registry
from recsys_emb.embeddings.fields import group_spec
from recsys_emb.embeddings.posttraining import compress, list_posttraining
from recsys_emb.models.base import build_model, model_registry
from recsys_emb.serving.exports import EXPORTERS
from recsys_emb.serving.exports.by_field import ByField

SCHEMA = DatasetSchema(
    dense=("price",),
    categorical=(
        CategoricalField(name="user", vocabulary="user"),
        CategoricalField(name="item", vocabulary="item"),
        CategoricalField(name="tags", vocabulary="tag", multi_valued=True),
    ),
    sequences=(
        SequenceField(name="history", vocabulary="item", target="item", max_length=3),
        SequenceField(name="again", vocabulary="item", target="item", max_length=3, aligned_with="history"),
    ),
    vocabularies={"user": 600, "item": 200, "tag": 50},
)
"""A field of every kind."""
HASHED = DatasetSchema(
    categorical=SCHEMA.categorical, vocabularies=dict.fromkeys(SCHEMA.vocabularies, 2**63 - 1), ids="hash64"
)
"""Ids are 63-bit hashes."""

FALLING = {name: np.arange(size, 0, -1) for name, size in SCHEMA.vocabularies.items()}
GAPS = {name: np.arange(size) % 3 for name, size in SCHEMA.vocabularies.items()}

BACKENDS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in backend_registry.names()),
    ("field_dim", {"widths": {"user": 0, "item": 3}}),
    ("mixed_dim", {"by": "size"}),
    ("multi_hash", {"importance": True}),
    ("qr", {"combine": "concat"}),
    ("unified", {"combine": "sum"}),
]
METHODS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in list_posttraining()),
    ("drop_unseen", {"stats": GAPS}),
    ("int8", {"range": "symmetric"}),
    ("prune", {"structure": "rows_columns"}),
]
HASHING = [name for name in backend_registry.names() if not backend_registry.get(name).needs_id_list]


def model_of(name: str, backend: EmbeddingBackend[Any], schema: DatasetSchema = SCHEMA) -> ByField:
    """A model of D = 4 on a backend of its width."""
    cls = model_registry.get(name)
    torch.manual_seed(0)
    return ByField(build_model(cls.Config(name=name, embedding_dim=4), schema, backend), schema).eval()


def trained(model: str, name: str, options: dict[str, Any], schema: DatasetSchema = SCHEMA) -> EmbeddingBackend[Any]:
    """A backend of the model's width, with rows large enough for every id to matter; half the full tables at most."""
    cls = model_registry.get(model)
    width = cls.embedding_width(cls.Config(name=model, embedding_dim=4))
    spec = group_spec(schema, width, 0.3, cls.first_order)
    free = name == "full" or options.get("importance") or "widths" in options
    budget = 20_000 if spec.hashed else None if free else spec.full_bytes // 2
    if spec.hashed and name == "qr":
        options = {**options, "modulus": 1000}
    torch.manual_seed(0)
    counts = FALLING if schema is SCHEMA else None
    made, config = plan_backend(name, spec, budget, counts, options)
    return made(spec, config)


def served(model: str, name: str, options: dict[str, Any], schema: DatasetSchema = SCHEMA) -> EmbeddingBackend[Any]:
    """The serving form of a backend, or of a full table after a post-training method."""
    if name in backend_registry.names():
        return trained(model, name, options, schema).eval().compact()
    options = dict(options)
    stats = options.pop("stats", FALLING)
    half = 0.5 if name in ("prune", "svd", "quantized_svd") else None
    return compress(trained(model, "full", {}).eval(), name, half, stats, options)


def table() -> str:
    """The README's table."""
    models = ", ".join(model_registry.names())
    forms = ", ".join([*backend_registry.names(), *list_posttraining()])
    lines = ["| `--to` | models | embeddings |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| `{to}` | {models} | {forms} |" for to in EXPORTERS)])


if __name__ == "__main__":
    print(table())
