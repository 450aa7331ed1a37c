"""Raw rows to the arrays of a prepared dataset, with its vocabularies: for rows that come after preparation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from recsys_emb.data.column_types import check_type
from recsys_emb.data.dense import FittedDense, read_numbers, standardise, transformed
from recsys_emb.data.frame import check_fields
from recsys_emb.data.lists import check_aligned, flatten
from recsys_emb.data.schema import HASHED_IDS, CategoricalField, DatasetSchema
from recsys_emb.data.split import Jagged, Split
from recsys_emb.data.store import open_dataset
from recsys_emb.data.values import canonical, distinct_codes, spelled
from recsys_emb.data.vocabulary import Index, ValueIndex
from recsys_emb.errors import UserError


class Encoder:
    """Encodes blocks of a source exactly as ``prepare`` encoded the dataset.

    Args:
        schema: the dataset's schema.
        dense: fitted parameters of the dense fields, in the schema's order.
        indexes: an index per vocabulary.
    """

    def __init__(self, schema: DatasetSchema, dense: Sequence[FittedDense], indexes: Mapping[str, Index]) -> None:
        self.schema = schema
        self._dense = dense
        self._indexes = indexes

    @classmethod
    def load(cls, path: str | Path, state: str | None = None) -> Encoder:
        """The encoder of a state of a prepared dataset, by default the latest.

        Raises:
            UserError: the folder is no dataset, has no such state or lacks a vocabulary.
        """
        dataset = open_dataset(path, state)
        schema = dataset.schema
        hashed = schema.ids == "hash64"
        files = {v: None if hashed else dataset.folder / "vocabularies" / f"{v}.arrow" for v in schema.vocabularies}
        for file in files.values():
            if file is not None and not file.is_file():
                raise UserError(f"{file} is missing; prepare the dataset again")
        indexes = {v: ValueIndex(f, schema.vocabularies[v], schema.hashed_integers.get(v)) for v, f in files.items()}
        return cls(schema, [FittedDense.model_validate(d) for d in dataset.manifest["dense"]], indexes)

    def encode(
        self,
        frame: pl.DataFrame,
        labels: np.ndarray | None = None,
        shared: Mapping[str, pl.Series | float] | None = None,
    ) -> Split:
        """The rows of ``Block.frame``, or of a frame of a user, as a split that ``BatchLoader`` reads.

        Args:
            frame: a column per field, of the types in column_types.py; others are not looked at.
            labels: uint8 [n]; 0 when not given.
            shared: fields that have the same value in all n rows, encoded once (``shared_columns``).

        Returns:
            The split; dense values too large for the model are infinite.

        Raises:
            UserError: a field of the dataset is no column of ``frame`` or of a type that it does not take, a dense
                value is no finite number, or aligned sequences of a row differ in length.
        """
        columns: dict[str, pl.Series | float] = {column.name: column for column in frame.get_columns()}
        columns |= shared or {}
        check_fields(self.schema, columns)
        n = len(frame)
        dense = self._numbers(columns, n)
        hashed = self.schema.ids == "hash64"
        ids = np.empty((n, len(self.schema.single_valued)), dtype=np.int64 if hashed else np.int32)
        for position, field in enumerate(self.schema.single_valued):
            ids[:, position] = self._ids(field.vocabulary, columns[field.name])
        lists = {f.name: column for f in self.schema.jagged if isinstance(column := columns[f.name], pl.Series)}
        jagged = {}
        limits = {f.name: f.max_length for f in self.schema.sequences}
        for other in self.schema.jagged:
            flat, lengths = flatten(lists[other.name], limits.get(other.name))
            values = self._series_ids(other.vocabulary, flat)
            if len(lengths) != n:
                values, lengths = np.tile(values, n), np.tile(lengths, n)
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            jagged[other.name] = Jagged(torch.from_numpy(values), torch.from_numpy(offsets.astype(np.int64)))
        check_aligned(self.schema.sequences, lists)
        clicks = np.zeros(n, dtype=np.uint8) if labels is None else labels
        return Split(
            name="input",
            labels=torch.from_numpy(clicks),
            weights=None,
            dense=torch.from_numpy(standardise(dense, self._dense)),
            ids=torch.from_numpy(ids),
            jagged=jagged,
        )

    @property
    def tells_unknown(self) -> list[str]:
        """The fields whose id 0 means that training has not seen the value."""
        return [f.name for f in self.schema.embedded if self._indexes[f.vocabulary].tells_unknown]

    def keys(self, field: CategoricalField, frame: pl.DataFrame) -> np.ndarray:
        """int64 [n]: 63-bit hashes of a single-valued field's values, known or not, whatever their ids are."""
        distinct, codes = distinct_codes(canonical(frame[field.name]))
        hashed = ValueIndex(None, HASHED_IDS, self._indexes[field.vocabulary].integers)
        return hashed.ids(distinct)[codes]

    def _numbers(self, columns: Mapping[str, pl.Series | float], n: int) -> np.ndarray:
        """float64 [n, Nd] of the dense fields, transformed, NaN where missing."""
        numbers: list[pl.Series | float] = []
        for field in self._dense:
            column = columns[field.name]
            if isinstance(column, pl.Series) and not column.dtype.is_float() and not column.dtype.is_integer():
                check_type("dense", column.dtype, f"field {field.name!r}")
                column, wrong = read_numbers(column)
                _refuse(field.name, columns[field.name], wrong.to_numpy())
            numbers.append(column)
        values = transformed(numbers, self._dense, n)
        infinite = np.isinf(values)
        if infinite.any():
            for position, field in enumerate(self._dense):
                _refuse(field.name, columns[field.name], infinite[:, position])
        return values

    def _ids(self, vocabulary: str, values: pl.Series | float) -> np.ndarray | int:
        if isinstance(values, pl.Series):
            return self._series_ids(vocabulary, canonical(values))
        return self._indexes[vocabulary].id_of(int(values))

    def _series_ids(self, vocabulary: str, values: pl.Series) -> np.ndarray:
        index = self._indexes[vocabulary]
        if len(values) <= FEW:
            return index.ids(spelled(values))
        distinct, codes = distinct_codes(values)
        return index.ids(distinct)[codes]


FEW = 1 << 10
"""Values that are found sooner one by one than after a search for those that are equal."""


def _refuse(field: str, column: pl.Series | float, wrong: np.ndarray) -> None:
    if wrong.any():
        row = int(wrong.argmax())
        value = column[row] if isinstance(column, pl.Series) else column
        raise UserError(f"field {field!r}: {value!r} in row {row} (from 0) is not a finite number")
