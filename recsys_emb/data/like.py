"""New rows prepared with the vocabularies and dense statistics of another dataset, or of an artifact."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from recsys_emb.data.dense import FittedDense
from recsys_emb.data.encoding import Encoding, describe_embedded, described, field_difference
from recsys_emb.data.folder import checksum
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.sources.base import DenseColumn, RawFields
from recsys_emb.data.store import open_dataset
from recsys_emb.data.vocabulary import ValueIndex, ValueSpool
from recsys_emb.errors import UserError
from recsys_emb.files import read_json_as

ARTIFACT_MANIFEST = "artifact.json"


class RawRows(BaseModel):
    """What turns rows of the source's format into a model's input, vocabularies aside."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str
    source: str
    options: dict[str, Any]
    dense: tuple[FittedDense, ...] = ()


class _Artifact(BaseModel):
    """What is read of ``artifact.json``, which holds more."""

    fields: DatasetSchema = Field(alias="schema")
    rows: RawRows
    checksums: dict[str, str]


@dataclass(frozen=True)
class Reference:
    """A folder that other rows are prepared like: vocabularies in ``vocabularies/``, the rest here."""

    path: Path
    rows: RawRows
    encoding: Encoding

    @property
    def schema(self) -> DatasetSchema:
        return self.encoding.schema

    def vocabulary_file(self, name: str) -> Path | None:
        """None where ids are hashes.

        Raises:
            UserError: the file is missing, or not what was recorded.
        """
        if self.schema.ids == "hash64":
            return None
        file = self.path / "vocabularies" / f"{name}.arrow"
        if not file.is_file() or checksum(file) != self.encoding.checksums.get(f"vocabularies/{name}.arrow"):
            raise UserError(f"--like {self.path}: {file.name} is missing or damaged; make the folder again")
        return file

    def check(self, fields: RawFields) -> RawFields:
        """The fields in the order of the reference. Raises UserError unless they are the reference's."""
        schema = self.schema
        dense = {d.name: f"dense ({d.transform})" for d in fields.dense}
        given = dense | describe_embedded(fields.categorical, fields.sequences)
        wrong = field_difference(described(schema, self.encoding.dense), given)
        if wrong is None and fields.weighted != schema.weighted:
            wrong = "rows have no weights" if schema.weighted else "rows have weights"
        if wrong is None and fields.user != schema.user:
            wrong = f"user is {fields.user or 'absent'}, not {schema.user or 'absent'}"
        if wrong is not None:
            raise UserError(f"--like {self.path}: {wrong}; leave out --schema to read the rows as it did")
        numbers = tuple(DenseColumn(d.name, d.transform) for d in self.rows.dense)
        return RawFields(numbers, schema.categorical, schema.sequences, schema.user, schema.weighted)


def open_reference(path: Path) -> Reference:
    """A prepared dataset or an artifact. Raises UserError when the folder is neither, or damaged."""
    if (path / ARTIFACT_MANIFEST).is_file():
        known = read_json_as(path / ARTIFACT_MANIFEST, _Artifact)
        dumped = [d.model_dump(mode="json") for d in known.rows.dense]
        return Reference(path, known.rows, Encoding(known.fields, dumped, known.checksums))
    if not (path / "dataset.json").is_file():
        raise UserError(f"--like {path}: neither a prepared dataset nor an artifact")
    dataset = open_dataset(path)
    facts = {key: dataset.manifest.get(key) for key in ("source", "options", "dense")}
    rows = RawRows.model_validate({"dataset": dataset.name, **facts})
    return Reference(path, rows, dataset.encoding)


def how_to_prepare_like(path: Path | str) -> str:
    """Advice for messages about a dataset that is not like the one at ``path``."""
    return f"prepare its rows with `recsys-emb data prepare SOURCE --like {path} --input FILE --out DIR`"


class ReferenceIds:
    """Ids of every block's values in the vocabularies of a reference, for ``encode.prepare``.

    Args:
        reference: whose ids.
        spools: the values of all blocks by vocabulary.
    """

    def __init__(self, reference: Reference, spools: dict[str, ValueSpool]) -> None:
        schema = reference.schema
        self.hashed = schema.ids == "hash64"
        self.sizes = schema.vocabularies
        self.hashed_integers = schema.hashed_integers
        self._files = {v: reference.vocabulary_file(v) for v in spools}
        self._indexes = {
            v: ValueIndex(file, self.sizes[v], self.hashed_integers.get(v)) for v, file in self._files.items()
        }
        self._spools = spools
        self._counts = {} if self.hashed else {v: np.zeros(self.sizes[v], np.int64) for v in spools}

    def by_block(self) -> dict[str, Iterator[np.ndarray]]:
        """Per vocabulary the ids of the values of each block, in the order of the spool."""
        return {v: self._block_ids(v) for v in self._spools}

    def _block_ids(self, vocabulary: str) -> Iterator[np.ndarray]:
        for values, counts in self._spools[vocabulary].batches():
            ids = self._indexes[vocabulary].ids(values)
            if not self.hashed:
                np.add.at(self._counts[vocabulary], ids, counts)
            yield ids

    def write(self, folder: Path) -> int:
        """Writes ``vocabularies/`` and the new rows' own ``counts/``; returns the bytes of the first."""
        if self.hashed:
            return 0
        for sub in ("vocabularies", "counts"):
            (folder / sub).mkdir()
        for name, file in self._files.items():
            np.save(folder / "counts" / f"{name}.npy", self._counts[name])
            shutil.copyfile(file, folder / "vocabularies" / f"{name}.arrow")  # type: ignore[arg-type]
        return sum(f.stat().st_size for f in (folder / "vocabularies").iterdir())
