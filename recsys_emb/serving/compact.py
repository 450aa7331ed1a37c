"""From a finished run to an artifact."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from recsys_emb.data.folder import checksum
from recsys_emb.data.like import RawRows
from recsys_emb.data.store import EncodedDataset
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.forms import Form
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.embeddings.posttraining.base import Sensitivity
from recsys_emb.errors import UserError, settings_written_as
from recsys_emb.files import write_json
from recsys_emb.models.base import CTRModel
from recsys_emb.serving.artifact import (
    DENSE,
    EMBEDDING,
    FORMAT_VERSION,
    MANIFEST,
    REPORT,
    Manifest,
    arrays,
    dense_arrays,
    load_artifact,
    stored_files,
)
from recsys_emb.serving.evaluate import logit_error
from recsys_emb.serving.vocabularies import (
    VocabularyForm,
    vocabulary_bytes,
    vocabulary_form,
    write_fingerprints,
    write_vocabularies,
)
from recsys_emb.sizes import Budget, parse_budget, written_budget
from recsys_emb.training import runtime
from recsys_emb.training.metrics import Predictions, auc_change
from recsys_emb.training.run import embedding_figures, restore, served_figures
from recsys_emb.training.run_dir import RunDir
from recsys_emb.training.run_files import PREDICTIONS
from recsys_emb.training.stage_runner import error_costs, predict_split
from recsys_emb.training.task import task_of
from recsys_emb.training.total_budget import Beside, beside, compressed_within


def write_artifact(
    run: RunDir,
    out: Path,
    method: str | None = None,
    budget: Budget = None,
    options: Mapping[str, Any] | None = None,
    evaluate: bool = True,
    data: Path | None = None,
    vocabulary: str | None = None,
    fingerprint_bits: int | None = None,
) -> dict[str, Any]:
    """Writes the artifact of a finished run; nothing is at ``out`` until all is done.

    Args:
        run: a finished run.
        out: the folder to make.
        method: a post-training method; None for the form that the run trained.
        budget: bytes that the embedding may take: a ratio to the full tables, bytes, or a size such as ``"20MB"``; of
            the embedding, the vocabularies and the rest of the model together: ``TotalBudget("20MB")``.
        options: the method's own options.
        evaluate: measure on the test split, and by how much the logits differ from the run's (``logit_error``).
        data: where the run's dataset is now, or one that was prepared alike; absent: where it was in training.
        vocabulary: ``exact``, the raw values, or ``fingerprint``, no values (data/fingerprints.py); None for that of
            the run's ``compact`` section, or ``exact``.
        fingerprint_bits: f; 1 in 2^f unknown values is taken for a known one. None as above, or 8.

    Returns:
        The report: the keys of a run's report with the artifact's figures, ``method``, ``trained_serving_bytes`` (of
        the run's own form), ``logit_error``, and ``change_from_run``: that of the AUC, its standard error, and the
        checksum of the run's stored predictions. ``taken_for_known``, measured, where there are fingerprints.

    Raises:
        UserError: ``out`` exists, the run is not finished, its dataset is gone, or the budget is out of reach.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists already; name a new folder")
    if method is None and options:
        raise UserError("--option: options belong to a --method; name one")
    trained = run.report
    config = run.config
    form, bits = vocabulary_form(config, vocabulary, fingerprint_bits)
    with settings_written_as("--{}".format):
        budget = parse_budget(budget)
    dataset = run.open_dataset(data)
    model, precision = restore(run)
    runtime.configure(config.seed, precision)
    before = predict_split(model, dataset, "test", config, precision) if evaluate else None

    backend = model.eval().embedding.backend.compact()
    rest = partial(beside, config, dataset, backend.spec, bits if form == "fingerprint" else None)
    costs = cache(partial(error_costs, model, dataset, config))
    backend = _compressed(backend, dataset, method, budget, options, costs, rest)
    named: dict[str, Any] = {}  # without a method the form is the run's own, as its report names it
    if method is not None:
        named = {
            "backend": f"{config.embedding.backend}+{method}",
            "method": method,
            "budget": written_budget(budget),
        }
    with _building(out) as folder:
        checksums, taken = _write_files(folder, dataset, model, backend, form, bits)
        sizes = served_figures(backend, model, vocabulary_bytes(folder, dataset.schema, form))
        how = {} if form == "exact" else {"vocabulary": form, "fingerprint_bits": bits}
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            fields=run.schema,
            config=config.model_dump(mode="json"),
            embedding=Form.of(backend, config.embedding.backend),
            rows=RawRows(
                dataset=dataset.name,
                source=dataset.manifest["source"],
                options=dataset.manifest["options"],
                dense=dataset.manifest["dense"],
            ),
            compact={"method": method, "budget": written_budget(budget), "options": dict(options or {}), **how},
            vocabulary=form,
            served_bytes=sizes["served_bytes"],
            precision=precision,
            checksums=checksums,
        )
        write_json(folder / MANIFEST, manifest.model_dump(mode="json", by_alias=True))
        for file in (EMBEDDING, DENSE):  # safetensors makes its files for the owner alone
            shutil.copymode(folder / MANIFEST, folder / file)
        report = {
            "method": None,  # of a run that knew of none
            **{k: v for k, v in trained.items() if not k.startswith("valid_")},
            **dict.fromkeys((*task_of(config).keys, "logit_error", "change_from_run")),
            **embedding_figures(backend),
            **sizes,
            "taken_for_known": taken,
            "trained_serving_bytes": trained["serving_bytes"],
            **named,
        }
        if before is not None:
            artifact = load_artifact(folder, device=str(next(model.parameters()).device.type))
            after = predict_split(artifact.model, dataset, "test", config, precision)
            report |= {
                **task_of(config).metrics(after),
                "logit_error": logit_error(before.logits, after.logits),
                "change_from_run": _change(run, before, after),
            }
        write_json(folder / REPORT, report)
    return report


def _change(run: RunDir, before: Predictions, after: Predictions) -> dict[str, Any]:
    """How the test AUC moved from the run's, and the checksum of the predictions that the run keeps, if it does."""
    stored = run.path / PREDICTIONS
    change, stderr = auc_change(before, after)
    return {"auc": change, "stderr": stderr, "predictions": checksum(stored) if stored.is_file() else None}


def _compressed(
    backend: EmbeddingBackend[Any],
    dataset: EncodedDataset,
    method: str | None,
    budget: Budget,
    options: Mapping[str, Any] | None,
    costs: Callable[[], Sensitivity],
    rest: Callable[[], Beside],
) -> EmbeddingBackend[Any]:
    if method is None:
        if budget is not None:
            raise UserError("--budget: the run's own form has one size; name a --method to make it smaller")
        return backend
    stats = dataset.stats()
    with settings_written_as(lambda setting: f"--{setting}".replace("--options.", "--option ")):
        return compressed_within(budget, rest, lambda own: compress(backend, method, own, stats, options, costs))


def _write_files(
    folder: Path,
    dataset: EncodedDataset,
    model: CTRModel,
    backend: EmbeddingBackend[Any],
    form: VocabularyForm,
    bits: int,
) -> tuple[dict[str, str], float | None]:
    """Writes everything but JSON. Returns the checksums by relative path, and what fingerprints take for known."""
    save_file(dense_arrays(model), folder / DENSE)
    save_file(arrays(backend), folder / EMBEDDING)
    of_values, taken = dict[str, str](), None
    if form == "exact":
        write_vocabularies(folder, dataset)
    else:
        of_values, taken = write_fingerprints(folder, dataset, backend, bits)
    return {**of_values, **{file: checksum(folder / file) for file in stored_files(dataset.schema, form)}}, taken


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that becomes ``out`` when the block ends, and goes when it fails."""
    beside = out.with_name(f"{out.name}.{os.getpid()}.partial")
    try:
        beside.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror})") from None
    try:
        yield beside
        if out.is_dir():
            out.rmdir()  # empty, or it would have been refused
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
