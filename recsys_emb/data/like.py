"""New rows prepared with the vocabularies and dense statistics of another dataset, or of an artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from recsys_emb.data.dense import FittedDense
from recsys_emb.data.encoding import Encoding, describe_embedded, described, field_difference
from recsys_emb.data.folder import checksum
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.sources.base import DenseColumn, RawFields
from recsys_emb.data.store import EncodedDataset, open_dataset
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
    vocabulary: str = "exact"
    rows: RawRows
    checksums: dict[str, str]


@dataclass(frozen=True)
class Reference:
    """A folder that other rows are prepared like: vocabularies in ``vocabularies/``, the rest here.

    ``given_as`` begins the messages about it.
    """

    path: Path
    rows: RawRows
    encoding: Encoding
    given_as: str = "--like "

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
            raise UserError(f"{self.given_as}{self.path}: {file.name} is missing or damaged; make the folder again")
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
            raise UserError(f"{self.given_as}{self.path}: {wrong}; leave out --schema to read the rows as it did")
        numbers = tuple(DenseColumn(d.name, d.transform) for d in self.rows.dense)
        return RawFields(numbers, schema.categorical, schema.sequences, schema.user, schema.weighted)


def open_reference(path: Path) -> Reference:
    """A prepared dataset or an artifact. UserError when the folder is neither, damaged, or without raw values."""
    if (path / ARTIFACT_MANIFEST).is_file():
        known = read_json_as(path / ARTIFACT_MANIFEST, _Artifact)
        if known.vocabulary != "exact":
            raise UserError(
                f"--like {path}: holds fingerprints of values, not the values (compact --vocabulary fingerprint); name "
                "its dataset, or an artifact with --vocabulary exact"
            )
        dumped = [d.model_dump(mode="json") for d in known.rows.dense]
        return Reference(path, known.rows, Encoding(known.fields, dumped, known.checksums))
    if not (path / "dataset.json").is_file():
        raise UserError(f"--like {path}: neither a prepared dataset nor an artifact")
    return reference_of(open_dataset(path))


def reference_of(dataset: EncodedDataset) -> Reference:
    """A prepared dataset, in the state that it was opened in."""
    facts = {key: dataset.manifest.get(key) for key in ("source", "options", "dense")}
    rows = RawRows.model_validate({"dataset": dataset.name, **facts})
    return Reference(dataset.folder, rows, dataset.encoding)


def how_to_prepare_like(path: Path | str) -> str:
    """Advice for messages about a dataset that is not like the one at ``path``."""
    return f"prepare its rows with `recsys-emb data prepare SOURCE --like {path} --input FILE --out DIR`"
