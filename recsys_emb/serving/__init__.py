"""Artifacts: a trained model in the bytes that were promised, and predictions with it.

What is here is imported when it is asked for: torch takes seconds, for which a command's ``--help`` must not wait.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_emb.serving.artifact import Artifact, is_artifact, load_artifact
    from recsys_emb.serving.compact import write_artifact
    from recsys_emb.serving.evaluate import evaluate_artifact, evaluate_input, field_importance
    from recsys_emb.serving.predict import predict_file

__all__ = [
    "Artifact",
    "evaluate_artifact",
    "evaluate_input",
    "field_importance",
    "is_artifact",
    "load_artifact",
    "predict_file",
    "write_artifact",
]

_MODULES = {
    **dict.fromkeys(("Artifact", "is_artifact", "load_artifact"), "artifact"),
    **dict.fromkeys(("evaluate_artifact", "evaluate_input", "field_importance"), "evaluate"),
    "predict_file": "predict",
    "write_artifact": "compact",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'recsys_emb.serving' has no attribute {name!r}")
    return getattr(import_module(f"recsys_emb.serving.{_MODULES[name]}"), name)
