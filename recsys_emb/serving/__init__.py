"""Artifacts: a trained model in the bytes that were promised, and predictions with it."""

from __future__ import annotations

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
