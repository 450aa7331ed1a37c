"""Metrics of an artifact on a prepared dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from recsys_emb.data.like import how_to_prepare_like
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.files import write_json
from recsys_emb.serving.artifact import REPORT, Artifact
from recsys_emb.training import runtime
from recsys_emb.training.stage_runner import predict_split
from recsys_emb.training.task import task_of


def evaluate_artifact(artifact: Artifact, split: str = "test", data: Path | None = None) -> dict[str, Any]:
    """AUC and the other figures of a split, as ``evaluate`` of a run gives them, and its ``unknown_share`` by field.

    Figures of the test split of the run's own dataset are written to the artifact's report where it has none yet.

    Args:
        artifact: what to evaluate.
        split: ``train``, ``valid`` or ``test``.
        data: a prepared dataset with the same fields; the run's own when absent.

    Raises:
        UserError: no dataset there, or one with other fields.
    """
    path = data or artifact.config.data.path
    if data is None and not path.exists():
        raise UserError(f"{artifact.path}: its dataset {path} is not on this machine; pass --data DIR")
    dataset = open_dataset(path)
    if wrong := artifact.encoding.difference(dataset.encoding):
        how = how_to_prepare_like(artifact.path)
        raise UserError(f"{dataset.path} was not prepared like {artifact.path}: {wrong}; {how}")
    runtime.configure(artifact.config.seed, artifact.manifest.precision)
    predicted = predict_split(artifact.model, dataset, split, artifact.config, artifact.manifest.precision)
    task = task_of(artifact.config)
    figures = task.metrics(predicted)
    if split == "test" and data is None and artifact.report.get(task.main.key) is None:
        write_json(artifact.path / REPORT, {**artifact.report, **figures})
    about = {"split": split, "unknown_share": dataset.unknown_share(split)}
    return {"artifact": str(artifact.path), **about, **figures}


def logit_error(before: Tensor, after: Tensor) -> dict[str, float]:
    """How far logits [N] moved: ``max`` and ``mean`` of the absolute differences."""
    difference = (after - before).abs()
    return {"max": float(difference.max()), "mean": float(difference.double().mean())}
