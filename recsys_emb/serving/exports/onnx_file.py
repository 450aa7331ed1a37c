"""ONNX: the whole model with its compact tables in one file, checked with onnxruntime on the CPU."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_emb.errors import UserError
from recsys_emb.serving.exports.by_field import ByField, Inputs, inputs_of
from recsys_emb.serving.exports.export import Exported
from recsys_emb.serving.exports.pt2_file import traced

OPSET = 20
NEEDED = ("onnx", "onnxscript", "onnxruntime")
MOST = (1 << 31) - (1 << 24)
"""Bytes of weights that a file holds, whose format ends at 2 GB; more of them lie beside it."""


def to_onnx(model: ByField, about: dict[str, Any], path: Path) -> Exported:
    """Writes ``path``, and ``path``.data beside it for weights beyond 2 GB; inputs by field name, output ``logits``.

    Raises:
        UserError: the packages of the extra ``onnx`` are not there.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise UserError(f"--to onnx: needs the package {missing[0]}; pip install 'recsys_emb[onnx]'")
    import onnxruntime

    program = traced(model).run_decompositions(DECOMPOSED)
    names = [i.name for i in inputs_of(model.schema)]
    made = torch.onnx.export(
        program, dynamo=True, input_names=names, output_names=["logits"], opset_version=OPSET, verbose=False
    )
    assert made is not None
    for part in (*made.model.graph, *made.model.graph.initializers.values()):
        part.metadata_props.clear()  # which lines of this package each comes from: most of a small file
    made.model.metadata_props["recsys_emb"] = json.dumps(about)
    weights = sum(t.nbytes for t in model.state_dict().values())
    made.save(path, external_data=weights > MOST)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {i.name for i in session.get_inputs()}

    def logits(inputs: Inputs) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in inputs.items() if name in taken}
        return torch.from_numpy(session.run(["logits"], arrays)[0])

    return Exported(logits, {"opset": OPSET, "onnxruntime": onnxruntime.__version__})


# -- operations that ONNX does not have -------------------------------------------------------------------------------


def _repeat(x: Tensor, repeats: Tensor, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """``x.repeat_interleave(repeats)``: entry i of x from where the repeats before it end."""
    assert output_size is not None  # what every use here gives
    ends = repeats.cumsum(0)
    begun = repeats.new_zeros([output_size + 1]).scatter_add(0, ends, torch.ones_like(ends))
    return x.index_select(0, begun.cumsum(0)[:output_size])


def _search(
    rising: Tensor,
    values: Tensor,
    *,
    out_int32: bool = False,
    right: bool = False,
    side: str | None = None,
    sorter: Tensor | None = None,
) -> Tensor:
    """``torch.searchsorted(rising, values)``: how many of K entries are smaller, a bit of the answer at a time."""
    count = rising.shape[0]
    found = torch.zeros_like(values, dtype=torch.int64)
    for bit in reversed(range(count.bit_length())):
        more = found + (1 << bit)
        smaller = rising.index_select(0, (more - 1).clamp(max=count - 1)) < values
        found = torch.where((more <= count) & smaller, more, found)
    return found


DECOMPOSED = {
    torch.ops.aten.repeat_interleave.self_Tensor: _repeat,
    torch.ops.aten.searchsorted.Tensor: _search,
}
