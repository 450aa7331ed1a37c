"""The artifact: a folder that predicts on another machine, and whose embedding file has the bytes that were promised.

ARTIFACT/
  embedding.safetensors     the arrays of the serving form: all that ``serving_bytes`` counts
  dense.safetensors         the rest of the model
  artifact.json             what it is: fields, config, form of the embedding, how raw rows are encoded, checksums
  vocabularies/NAME.arrow   raw values by id; ``vocabulary_bytes`` (absent for hash64 ids); or else
  fingerprints/NAME.safetensors  fingerprints of them (data/fingerprints.py)
  report.json               the figures, under the keys of a run's report

Nothing is unpickled, and no path is taken from a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.encoder import Encoder
from recsys_emb.data.encoding import Encoding
from recsys_emb.data.folder import checksum
from recsys_emb.data.frame import shared_columns, to_frame
from recsys_emb.data.like import ARTIFACT_MANIFEST, RawRows
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.split import Split
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.fields import group_spec
from recsys_emb.embeddings.forms import Form
from recsys_emb.errors import UserError
from recsys_emb.files import one_line, read_json
from recsys_emb.models.base import CTRModel, build_model, model_registry
from recsys_emb.serving.vocabularies import VocabularyForm, open_indexes, vocabulary_files
from recsys_emb.training import runtime
from recsys_emb.training.checkpoint import load_tensors
from recsys_emb.training.predict import predict
from recsys_emb.validation import explain

FORMAT_VERSION = 4
"""4: texts of one value, such as 3 and 3.0, are one id (data/values.py). 3: narrow rows are kept as they are; 2 divided
them by a factor of their width."""
EMBEDDING, DENSE, MANIFEST, REPORT = "embedding.safetensors", "dense.safetensors", ARTIFACT_MANIFEST, "report.json"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Manifest(_Strict):
    """``artifact.json``.

    ``compact`` is how the artifact was made (method, budget, options); ``precision`` what the dense part runs in;
    ``served_bytes`` are those of embeddings, vocabularies and the rest of the model; ``checksums`` BLAKE2b sums of
    every other file, the report aside, and of raw values whose fingerprints alone are there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    format_version: int
    fields: DatasetSchema = Field(alias="schema")
    config: dict[str, Any]
    embedding: Form
    rows: RawRows
    compact: dict[str, Any]
    vocabulary: VocabularyForm = "exact"
    served_bytes: int | None = None
    precision: str = Field(pattern="^(fp32|tf32|bf16)$")
    checksums: dict[str, str]


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact.

    Attributes:
        path: the folder.
        manifest: ``artifact.json``.
        config: of the run that it was made from.
        model: in eval mode, with the serving form of the embedding.
    """

    path: Path
    manifest: Manifest
    config: RunConfig
    model: CTRModel

    @property
    def schema(self) -> DatasetSchema:
        return self.manifest.fields

    @property
    def encoding(self) -> Encoding:
        """That of the dataset that the run was trained on."""
        dense = [d.model_dump(mode="json") for d in self.manifest.rows.dense]
        return Encoding(self.schema, dense, self.manifest.checksums)

    @property
    def backend(self) -> EmbeddingBackend[Any]:
        return self.model.embedding.backend

    @property
    def serving_bytes(self) -> int:
        """Bytes of the embedding's arrays."""
        return self.backend.serving_bytes()

    @property
    def report(self) -> dict[str, Any]:
        """``report.json``."""
        return read_json(self.path / REPORT)

    @cached_property
    def encoder(self) -> Encoder:
        """Raw rows -> the model's input. Holds the vocabularies in memory, so it is made on first use."""
        indexes = open_indexes(self.path, self.schema, self.manifest.vocabulary)
        return Encoder(self.schema, self.manifest.rows.dense, indexes)

    def logits(self, frame: Any, batch_size: int | None = None, shared: Mapping[str, Any] | None = None) -> np.ndarray:
        """Log-odds of a click, float32 [n], of raw rows with a column per field.

        Values that training did not see count as out-of-vocabulary.

        Args:
            frame: a polars, pandas or Arrow table, or a dict of columns; columns of other names are not looked at.
            batch_size: rows at a time; that of training when absent.
            shared: by field, the value that all rows have, a list for a field of lists; such fields have no column.
                Of a request, what is known of the user, which is encoded once for all candidates.

        Raises:
            UserError: a field is missing or of a type that it does not take, a number is not finite or too large, or
                aligned sequences of a row differ in length.
        """
        return self.predict(self.encode(frame, shared), batch_size)

    def encode(self, frame: Any, shared: Mapping[str, Any] | None = None) -> Split:
        """Raw rows as ``predict`` takes them. Arguments and errors as in ``logits``."""
        same = None if shared is None else shared_columns(shared, self.schema)
        rows = to_frame(frame, self.schema, same or ())
        split = self.encoder.encode(rows, shared=same)
        infinite = ~split.dense.isfinite()
        if infinite.any():
            row, column = infinite.nonzero()[0].tolist()
            raise UserError(f"field {self.schema.dense[column]!r}: the number in row {row} (from 0) is too large")
        return split

    def predict(self, split: Split, batch_size: int | None = None) -> np.ndarray:
        """Log-odds of a click, float32 [n], of encoded rows (``encoder``); no numbers where a dense value is none."""
        size = min(batch_size or self.config.training.batch_size, max(len(split), 1))  # a loader allocates for so many
        loader = BatchLoader(split, self.schema, size)
        return predict(self.model, loader, self.manifest.precision).logits.numpy()


def is_artifact(path: str | Path) -> bool:
    return (Path(path) / MANIFEST).is_file()


def load_artifact(path: str | Path, device: str = "auto") -> Artifact:
    """Opens an artifact: ``.logits(frame)``, ``.model``, ``.report``, ``.schema``, ``.serving_bytes``.

    Args:
        path: a folder written by ``recsys-emb compact``.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: not an artifact, of another version, or damaged: a file, array or name that does not fit.
    """
    path = Path(path)
    manifest = _read_manifest(path)
    config = parse_config(manifest.config, source=f"{path / MANIFEST}: config")
    for file in stored_files(manifest.fields, manifest.vocabulary):
        _check_file(path, file, manifest.checksums)
    backend = _build_backend(path, manifest, config)
    try:
        model = build_model(config.model, manifest.fields, backend)
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{path / MANIFEST}: schema and model do not fit together ({one_line(error)})") from None
    stored = _load(path / EMBEDDING, backend.state_dict())
    backend.load_state_dict(stored, assign=True)
    model.load_state_dict(_load(path / DENSE, model.dense_state()), strict=False)
    return Artifact(path, manifest, config, model.to(runtime.pick_device(device)).eval().requires_grad_(False))


def stored_files(schema: DatasetSchema, form: VocabularyForm) -> list[str]:
    """Relative paths of all files of an artifact beside ``artifact.json`` and the report."""
    return [EMBEDDING, DENSE, *vocabulary_files(schema, form).values()]


def _read_manifest(path: Path) -> Manifest:
    if not is_artifact(path):
        what = f"not an artifact (no {MANIFEST})" if path.exists() else "no such folder"
        raise UserError(f"{path}: {what}; `recsys-emb compact` makes one")
    tree = read_json(path / MANIFEST)
    version = tree.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path / MANIFEST}: format {version!r}, this version reads {FORMAT_VERSION}; compact the run again"
        )
    try:
        return Manifest.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path / MANIFEST}: {explain(error, Manifest)}") from None


def _check_file(path: Path, file: str, checksums: dict[str, str]) -> None:
    if not (path / file).is_file():
        raise UserError(f"{path / file}: missing; compact the run again")
    if checksum(path / file) != checksums.get(file):
        raise UserError(f"{path / file}: damaged, its checksum is not that of {MANIFEST}; compact the run again")


def _build_backend(path: Path, manifest: Manifest, config: RunConfig) -> EmbeddingBackend[Any]:
    """The serving form without content: shapes alone, nothing is allocated."""
    form, model = manifest.embedding, model_registry.get(config.model.name)
    width = model.embedding_width(config.model)
    spec = group_spec(manifest.fields, width, config.embedding.init_std, model.first_order)
    where = f"{path / MANIFEST}: embedding"
    try:
        return form.build(spec, "meta")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, form.module.Config, prefix='config')}") from None
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{where}: these sizes do not fit the fields ({one_line(error)})") from None


def _load(file: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The arrays of a file, which must have the names, shapes and types of ``expected``."""
    stored = load_tensors(file)
    for name in sorted(expected.keys() | stored.keys()):
        if name not in stored:
            raise UserError(f"{file}: no array {name!r}; compact the run again")
        if name not in expected:
            raise UserError(f"{file}: an array {name!r} that the model does not have; compact the run again")
        got, wanted = ((list(t.shape), str(t.dtype).removeprefix("torch.")) for t in (stored[name], expected[name]))
        if got != wanted:
            raise UserError(
                f"{file}: array {name!r} is {got[1]} {got[0]}, expected {wanted[1]} {wanted[0]}; compact the run again"
            )
    return stored


def arrays(backend: EmbeddingBackend[Any]) -> dict[str, Tensor]:
    """What ``embedding.safetensors`` holds."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in backend.state_dict().items()}


def dense_arrays(model: CTRModel) -> dict[str, Tensor]:
    """What ``dense.safetensors`` holds."""
    return {name: t.detach().cpu().contiguous() for name, t in model.dense_state().items()}
