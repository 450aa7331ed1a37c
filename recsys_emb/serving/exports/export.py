"""One artifact in another form, shown to give the same logits before it is left behind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from recsys_emb import __version__
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.store import EncodedDataset
from recsys_emb.errors import UserError
from recsys_emb.serving.artifact import Artifact, dense_arrays
from recsys_emb.serving.evaluate import logit_error
from recsys_emb.serving.exports.by_field import ByField, Inputs, by_field, inputs_of, random_rows

LARGEST_DIFFERENCE = 1e-4
"""The largest difference of a logit with which an export passes."""
ROWS = 1024
"""Rows that an export is compared on, at most."""


@dataclass(frozen=True)
class Exported:
    """What an exporter wrote.

    Attributes:
        logits: those that the files give in the program which they are for, float32 [B].
        more: what else to report.
    """

    logits: Callable[[Inputs], Tensor]
    more: dict[str, Any] = field(default_factory=dict)


class Exporter(Protocol):
    """Writes a model.

    Args:
        model: of fp32 weights, on the CPU, in eval mode.
        about: what the files say of the model, for JSON.
        path: the file or folder to make; more files may lie beside it whose names begin with its own.
    """

    def __call__(self, model: ByField, about: dict[str, Any], path: Path) -> Exported: ...


def export_artifact(artifact: Artifact, exporter: Exporter, out: Path, data: Path | None = None) -> dict[str, Any]:
    """Writes an artifact in another form, in fp32.

    Args:
        artifact: what to export, loaded on the CPU.
        exporter: of the form.
        out: the file or folder to make.
        data: a prepared dataset with the artifact's fields and vocabularies, whose test rows are compared; when absent
            that of the run, or rows made from the fields where that is not on this machine.

    Returns:
        ``out``, ``bytes`` written, ``serving_bytes`` of the embedding, ``dense_bytes`` of the rest of the model,
        ``overhead_bytes`` beside both, ``compared_on`` which rows, ``largest_difference`` of a logit, and what the
        exporter adds.

    Raises:
        UserError: ``out`` exists, the data are others, the form cannot hold the model, or a logit differs by more than
            1e-4; nothing is left then.
    """
    if out.exists():
        raise UserError(f"--out {out}: exists already; name a new one")
    dataset = _dataset(artifact, data)
    model = ByField(artifact.model, artifact.schema).eval()
    about = {
        "made_by": f"recsys_emb {__version__}",
        "model": artifact.config.model.name,
        "embedding": artifact.manifest.embedding.model_dump(mode="json"),
        "inputs": [i.description() for i in inputs_of(artifact.schema)],
        "output": {"name": "logits", "dtype": "float32", "shape": ["B"]},
    }
    partial = out.with_name(f"{out.name}.partial")
    try:
        partial.mkdir(parents=True)
        with torch.no_grad():
            exported = exporter(model, about, partial / out.name)
            worst = _largest_difference(model, exported, _rows(artifact, dataset))
        where = f"rows of {dataset.path}" if dataset else "made rows"
        if not worst <= LARGEST_DIFFERENCE:
            raise UserError(
                f"--out {out}: not written, since logits of {where} differ by up to {worst:.2g}; "
                f"{LARGEST_DIFFERENCE:g} is allowed"
            )
        size = sum(f.stat().st_size for f in partial.rglob("*") if f.is_file())
        for made in sorted(partial.iterdir(), reverse=True):  # what lies beside it first
            made.rename(out.with_name(made.name))
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    dense = sum(t.nbytes for t in dense_arrays(artifact.model).values())
    return {
        "out": str(out),
        "bytes": size,
        "serving_bytes": artifact.serving_bytes,
        "dense_bytes": dense,
        "overhead_bytes": size - artifact.serving_bytes - dense,
        "compared_on": where,
        "largest_difference": worst,
        **exported.more,
    }


def _dataset(artifact: Artifact, data: Path | None) -> EncodedDataset | None:
    """What to compare on; None where the run's own is not there."""
    path = data or artifact.config.data.path
    if data is None and not path.exists():
        return None
    dataset = artifact.config.data.open(path)
    wrong = artifact.encoding.difference(dataset.encoding)
    if wrong and data is not None:
        raise UserError(f"--data {path} was not prepared like {artifact.path}: {wrong}")
    return None if wrong else dataset


def _rows(artifact: Artifact, dataset: EncodedDataset | None) -> Iterator[Inputs]:
    """Some hundred rows in batches of several sizes, one of them a single row."""
    if dataset is None:
        for rows in (1, 2, ROWS - 3):
            yield random_rows(artifact.schema, rows, seed=rows)
        return
    split = dataset.split("test")
    for size, batches in ((1, 1), (2, 1), (ROWS // 4, 4)):
        loader = BatchLoader(split, artifact.schema, size)
        for _, batch in zip(range(batches), loader):
            yield by_field(batch, artifact.schema)


def _largest_difference(model: ByField, exported: Exported, rows: Iterator[Inputs]) -> float:
    return max(logit_error(model(inputs), exported.logits(inputs))["max"] for inputs in rows)
