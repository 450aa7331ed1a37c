"""``torch.export``: a .pt2 file that torch loads without this package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from recsys_emb.serving.exports.by_field import ByField, inputs_of, random_rows
from recsys_emb.serving.exports.export import Exported

ABOUT = "about.json"
"""The name among the file's ``extra_files``: inputs, output and what the model is."""


def to_torch(model: ByField, about: dict[str, Any], path: Path) -> Exported:
    """Writes ``path``; ``torch.export.load(path).module()(inputs)`` gives logits float32 [B]."""
    torch.export.save(traced(model), path, extra_files={ABOUT: json.dumps(about)})
    return Exported(torch.export.load(path).module(), {"torch": torch.__version__})


def traced(model: ByField) -> ExportedProgram:
    """The model's graph, for any number of rows and of ids of a jagged field."""
    schema = model.schema
    dims: dict[str, Any] = {}
    shapes = {}
    for i in inputs_of(schema):
        shapes[i.name] = {
            axis: dims.setdefault(size, Dim(size)) for axis, size in enumerate(i.sizes) if isinstance(size, str)
        }
    example = random_rows(schema, 7, least=1)  # sizes of 0 and 1 would be taken for constants
    return torch.export.export(model, (example,), dynamic_shapes=(shapes,), strict=False)
