"""Artifacts in forms that other programs load: torch without this package, onnxruntime, TorchRec."""

from __future__ import annotations

from recsys_emb.errors import UserError
from recsys_emb.serving.exports.export import Exporter, export_artifact
from recsys_emb.serving.exports.onnx_file import to_onnx
from recsys_emb.serving.exports.pt2_file import to_torch
from recsys_emb.serving.exports.torchrec_folder import to_torchrec

EXPORTERS: dict[str, Exporter] = {"torch": to_torch, "onnx": to_onnx, "torchrec": to_torchrec}
"""What ``recsys-emb export --to`` takes."""


def exporter(name: str) -> Exporter:
    """The exporter of a form. Raises UserError when there is none of that name."""
    if name not in EXPORTERS:
        raise UserError(f"--to {name}: no such form; allowed: {', '.join(EXPORTERS)}")
    return EXPORTERS[name]


__all__ = ["EXPORTERS", "Exporter", "export_artifact", "exporter"]
