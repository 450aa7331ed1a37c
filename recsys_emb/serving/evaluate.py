"""Metrics of an artifact on a prepared dataset, or on raw rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_emb.data.like import how_to_prepare_like
from recsys_emb.data.options import make_source
from recsys_emb.data.rejects import RejectLog
from recsys_emb.data.schema import OOV_ID
from recsys_emb.data.store import EncodedDataset
from recsys_emb.data.unknown import UnknownValues
from recsys_emb.errors import UserError
from recsys_emb.files import write_json
from recsys_emb.serving.artifact import REPORT, Artifact, is_artifact, load_artifact
from recsys_emb.serving.raw_rows import RowsDone, Scored, score
from recsys_emb.training import metrics, runtime
from recsys_emb.training.importance import Done, importance
from recsys_emb.training.metrics import Predictions
from recsys_emb.training.run import restore
from recsys_emb.training.run_dir import load_run
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
    dataset = dataset_of(artifact, data)
    runtime.configure(artifact.config.seed, artifact.manifest.precision)
    predicted = predict_split(artifact.model, dataset, split, artifact.config, artifact.manifest.precision)
    task = task_of(artifact.config)
    figures = task.metrics(predicted)
    if split == "test" and data is None and artifact.report.get(task.main.key) is None:
        write_json(artifact.path / REPORT, {**artifact.report, **figures})
    about = {"split": split, "unknown_share": dataset.unknown_share(split)}
    return {"artifact": str(artifact.path), **about, **figures}


def dataset_of(artifact: Artifact, data: Path | None = None) -> EncodedDataset:
    """The dataset of the run that the artifact was made from, or ``data``, one that was prepared alike.

    Raises:
        UserError: no dataset there, or one with other fields.
    """
    path = data or artifact.config.data.path
    if data is None and not path.exists():
        raise UserError(f"{artifact.path}: its dataset {path} is not on this machine; pass --data DIR")
    dataset = artifact.config.data.open(path)
    if wrong := artifact.encoding.difference(dataset.encoding):
        how = how_to_prepare_like(artifact.path)
        raise UserError(f"{dataset.path} was not prepared like {artifact.path}: {wrong}; {how}")
    return dataset


def field_importance(
    path: Path,
    split: str = "valid",
    data: Path | None = None,
    permutations: int = 5,
    rows: int | None = 100_000,
    done: Done | None = None,
) -> dict[str, Any]:
    """Permutation importance of the fields of a run or an artifact (training/importance.py).

    Args:
        path: of a run or an artifact.
        split: ``train``, ``valid`` or ``test``.
        data: a prepared dataset with the same fields; the run's own when absent.
        permutations: of each field.
        rows: so many of the split's; None for all.
        done: told of the progress.

    Raises:
        UserError: no run or artifact, no dataset there, or one with other fields.
    """
    if is_artifact(path):
        artifact = load_artifact(path)
        dataset, config = dataset_of(artifact, data), artifact.config
        model, precision = artifact.model, artifact.manifest.precision
    else:
        run = load_run(path)
        dataset, config = run.open_dataset(data), run.config
        model, precision = restore(run)
    runtime.configure(config.seed, precision)
    size, chosen = config.training.batch_size, dataset.split(split)
    found = importance(model, dataset.schema, chosen, size, precision, permutations, rows, config.seed, done)
    return {"path": str(path), "split": split, **found}


def evaluate_input(
    artifact: Artifact,
    input: Path | None,
    by: Sequence[str] = (),
    max_rejected: float = 0.01,
    progress: RowsDone | None = None,
) -> dict[str, Any]:
    """The figures of raw rows with labels, such as those of the days after training.

    Args:
        artifact: what predicts.
        input: file, folder or glob in the format that the dataset was prepared from.
        by: categorical fields; AUC is given apart for the rows whose value training has seen and has not seen. The
            user's, if there is one, is always among them.
        max_rejected: share of malformed rows above which nothing is measured.
        progress: told of the rows done.

    Returns:
        The figures of ``evaluate_artifact``, and ``rejected``, ``unknown_share`` and ``notes`` as ``predict_file`` has
        them; ``by``: per field ``known`` and ``unknown``, each with ``rows`` and ``auc``, None where it is undefined.

    Raises:
        UserError: unreadable or empty input, no labels, too many malformed rows, ``by`` is no field, or ids are hashes,
            which are never unknown, or the artifact cannot tell which values are.
    """
    schema = artifact.schema
    position = {f.name: i for i, f in enumerate(schema.single_valued)}
    told = artifact.encoder.tells_unknown
    if (user := schema.user) is not None and user in told:
        by = [user, *(name for name in by if name != user)]
    for name in by:
        if name not in position:
            raise UserError(f"--by {name}: not one of the categorical fields: {', '.join(position)}")
        if schema.ids == "hash64":
            raise UserError(f"--by {name}: ids are hashes, which are never unknown")
        if name not in told:
            raise UserError(
                f"--by {name}: {artifact.path} has no fingerprints of some values that training has seen, since they "
                "share the row of unknown ones; compact with --vocabulary exact"
            )
    source = make_source(artifact.manifest.rows.source, input, options=artifact.manifest.rows.options)
    runtime.configure(artifact.config.seed, artifact.manifest.precision)
    predictions, unknown = Predictions(), UnknownValues(schema, told)
    seen: dict[str, list[Tensor]] = {name: [] for name in by}
    with RejectLog(None, max_rejected) as rejects:
        for scored in score(artifact, source.labelled(), rejects, input, progress=progress):
            unknown.add(scored.encoded)
            good = torch.from_numpy(scored.good)
            ids, weights = scored.encoded.ids[good], scored.block.weights
            predictions.append(
                torch.from_numpy(scored.logits)[good],
                torch.tensor(scored.block.labels)[good],
                None if weights is None else torch.tensor(weights)[good],
                None if user is None else _users(artifact, scored)[good],
            )
            for name, known in seen.items():
                known.append(ids[:, position[name]] != OOV_ID)
    if not len(predictions):
        raise UserError(f"--input {input}: no rows")
    return {
        "artifact": str(artifact.path),
        "input": None if input is None else str(input),
        "rejected": rejects.count,
        "unknown_share": unknown.shares,
        "notes": [asdict(note) for note in source.notes()],
        **task_of(artifact.config).metrics(predictions),
        "by": {name: _known_and_unknown(predictions, torch.cat(known)) for name, known in seen.items()},
    }


def _users(artifact: Artifact, scored: Scored) -> Tensor:
    """int64 [n], whom GAUC groups by: the user's id; with fingerprints, where users may share one, the value's hash.

    Unknown users are left out (0) as far as it is known who they are.
    """
    schema = artifact.schema
    (field,) = [f for f in schema.single_valued if f.name == schema.user]
    ids = scored.encoded.ids[:, schema.single_valued.index(field)]
    if artifact.manifest.vocabulary == "exact":
        return ids
    users = torch.from_numpy(artifact.encoder.keys(field, scored.block.frame))
    return users.masked_fill(ids == OOV_ID, OOV_ID) if field.name in artifact.encoder.tells_unknown else users


def _known_and_unknown(predictions: Predictions, known: Tensor) -> dict[str, dict[str, float | None]]:
    """``rows`` and ``auc`` of the rows where ``known`` (bool [N]) holds, and of the others."""
    parts = {}
    for name, mine in (("known", known), ("unknown", ~known)):
        labels = predictions.labels[mine]
        weights = None if predictions.weights is None else predictions.weights[mine]
        both = 0 < int(labels.sum()) < len(labels)
        auc = metrics.auc(predictions.logits[mine], labels, weights) if both else None
        parts[name] = {"rows": len(labels), "auc": auc}
    return parts


def logit_error(before: Tensor, after: Tensor) -> dict[str, float]:
    """How far logits [N] moved: ``max`` and ``mean`` of the absolute differences."""
    difference = (after - before).abs()
    return {"max": float(difference.max()), "mean": float(difference.double().mean())}
