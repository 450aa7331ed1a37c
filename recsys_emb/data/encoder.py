"""Raw rows to the arrays of a prepared dataset, with its vocabularies: for rows that come after preparation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import torch

from recsys_emb.data.dense import FittedDense, standardise, transform
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.store import Jagged, Split, open_dataset
from recsys_emb.data.values import as_prepared, canonical, distinct_codes, flatten
from recsys_emb.data.vocabulary import ValueIndex
from recsys_emb.errors import UserError


class Encoder:
    """Encodes blocks of a source exactly as ``prepare`` encoded the dataset.

    Args:
        schema: the dataset's schema.
        dense: fitted parameters of the dense fields, in the schema's order.
        indexes: an index per vocabulary.
    """

    def __init__(self, schema: DatasetSchema, dense: Sequence[FittedDense], indexes: dict[str, ValueIndex]) -> None:
        self.schema = schema
        self._dense = dense
        self._indexes = indexes

    @classmethod
    def load(cls, path: str | Path) -> Encoder:
        """The encoder of a prepared dataset. Raises UserError when the folder is none or lacks a vocabulary."""
        dataset = open_dataset(path)
        schema = dataset.schema
        hashed = schema.ids == "hash64"
        files = {v: None if hashed else dataset.path / "vocabularies" / f"{v}.arrow" for v in schema.vocabularies}
        for file in files.values():
            if file is not None and not file.is_file():
                raise UserError(f"{file} is missing; prepare the dataset again")
        indexes = {v: ValueIndex(f, schema.vocabularies[v], schema.hashed_integers.get(v)) for v, f in files.items()}
        return cls(schema, [FittedDense.model_validate(d) for d in dataset.manifest["dense"]], indexes)

    def encode(self, frame: pl.DataFrame, labels: np.ndarray | None = None) -> Split:
        """The rows of ``Block.frame`` as a split that ``BatchLoader`` reads; labels are 0 when not given.

        Raises:
            UserError: a field of the dataset is no column of ``frame``, or has values of another type.
        """
        missing = [f for f in (*self.schema.dense, *(f.name for f in self.schema.embedded)) if f not in frame.columns]
        if missing:
            raise UserError(f"the rows have no field {missing[0]!r}; they have {', '.join(frame.columns)}")
        hashed = self.schema.ids == "hash64"
        ids = np.zeros((len(frame), len(self.schema.single_valued)), dtype=np.int64 if hashed else np.int32)
        for position, field in enumerate(self.schema.single_valued):
            ids[:, position] = self._ids(field.vocabulary, canonical(frame[field.name]))
        jagged = {}
        limits = {f.name: f.max_length for f in self.schema.sequences}
        for other in self.schema.jagged:
            flat, lengths = flatten(frame[other.name], limits.get(other.name))
            offsets = np.concatenate([[0], np.cumsum(lengths)])
            jagged[other.name] = Jagged(
                torch.from_numpy(self._ids(other.vocabulary, flat)), torch.from_numpy(offsets.astype(np.int64))
            )
        clicks = np.zeros(len(frame), dtype=np.uint8) if labels is None else labels
        return Split(
            name="input",
            labels=torch.from_numpy(clicks),
            weights=None,
            dense=torch.from_numpy(standardise(transform(frame, self._dense), self._dense)),
            ids=torch.from_numpy(ids),
            jagged=jagged,
        )

    def _ids(self, vocabulary: str, values: pl.Series) -> np.ndarray:
        index = self._indexes[vocabulary]
        distinct, codes = distinct_codes(as_prepared(values, index.integers))
        return index.ids(distinct)[codes]
