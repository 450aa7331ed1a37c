"""What a plan is made for: the fields, one batch of them, how often ids occur; of a dataset, or before there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torchrec import KeyedJaggedTensor

from recsys_emb.data.batches import Batch, BatchLoader
from recsys_emb.data.schema import CategoricalField, DatasetSchema
from recsys_emb.data.store import EncodedDataset
from recsys_emb.embeddings.base import Stats
from recsys_emb.errors import UserError

_RANDOM_IDS = (
    "ids of a batch are random, each of a field as likely as any other: they repeat as little as can be, so real ones "
    "look up and send fewer different rows"
)
_SIZES = (
    "--ids-per-field: vocabularies are planned with so many ids, whatever the dataset has; a field has a row of its "
    "table for each, so N ids of 26 fields are 26 N rows"
)


@dataclass(frozen=True)
class Workload:
    """Fields and their traffic.

    Attributes:
        schema: the fields and the sizes of their vocabularies.
        batch: makes a batch of so many rows, or fewer.
        stats: occurrences of each id by vocabulary, where they are known.
        assumptions: what was assumed for these, a sentence each.
    """

    schema: DatasetSchema
    batch: Callable[[int], Batch]
    stats: Stats
    assumptions: tuple[str, ...]


def of_dataset(dataset: EncodedDataset, ids: Mapping[str, int] | None = None) -> Workload:
    """A prepared dataset.

    Args:
        dataset: in the state that is trained on.
        ids: other sizes by the vocabulary's name, "" is every one that is not named; lookups are then of random ids.
            With the dataset's own sizes they are those of a batch of its training split.

    Raises:
        UserError: an unknown vocabulary, or ids that are hashes and have no sizes.
    """
    schema = _resized(dataset.schema, ids)

    def batch(rows: int) -> Batch:
        own = next(iter(BatchLoader(dataset.split("train"), dataset.schema, rows, shuffle=True)))
        return _with_random_ids(own, schema) if ids else own

    if not ids:
        known = (f"ids of a batch are those of {dataset.name}'s training split",)
        return Workload(schema, batch, dataset.stats(), known)
    return Workload(schema, batch, {}, (_SIZES, _RANDOM_IDS))


def of_fields(fields: Mapping[str, int], dense: int = 0) -> Workload:
    """Fields of one id a row, of which no data is there yet.

    Args:
        fields: ids by name.
        dense: number of dense features.

    Raises:
        UserError: a name or a size that cannot be.
    """
    try:
        schema = DatasetSchema(
            dense=tuple(f"dense{i + 1}" for i in range(dense)),
            categorical=tuple(CategoricalField(name=name, vocabulary=name) for name in fields),
            vocabularies=dict(fields),
        )
    except ValueError as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"--fields: {problem.removeprefix('Value error, ')}") from None

    def batch(rows: int) -> Batch:
        ones = torch.ones(rows * len(fields), dtype=torch.int64)
        ids = KeyedJaggedTensor(schema.sparse_keys, ones, lengths=ones, stride=rows)
        values = torch.randn(rows, dense, generator=torch.Generator().manual_seed(0))
        return _with_random_ids(Batch(values, ids, None, torch.zeros(rows)), schema)

    assumed = (f"every row has one id of each of {len(fields)} fields and {dense} dense features", _RANDOM_IDS)
    return Workload(schema, batch, {}, assumed)


def _resized(schema: DatasetSchema, ids: Mapping[str, int] | None) -> DatasetSchema:
    if not ids:
        return schema
    if schema.ids == "hash64":
        raise UserError("--ids-per-field: the dataset holds 63-bit hashes, so its fields have no sizes")
    own = schema.vocabularies
    unknown = next((name for name in ids if name and name not in own), None)
    if unknown is not None:
        raise UserError(f"--ids-per-field: no vocabulary {unknown!r}; allowed: {', '.join(own)}")
    sizes = {name: ids.get(name, ids.get("", size)) for name, size in own.items()}
    return schema.model_copy(update={"vocabularies": sizes})


def _with_random_ids(batch: Batch, schema: DatasetSchema) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sizes = {f.name: schema.vocabularies[f.vocabulary] for f in schema.embedded}

    def drawn(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        counted = zip(kjt.keys(), kjt.length_per_key())
        values = torch.cat([torch.randint(sizes[key], (n,), generator=generator) for key, n in counted])
        return KeyedJaggedTensor(kjt.keys(), values, lengths=kjt.lengths(), stride=kjt.stride())

    sequences = None if batch.sequences is None else drawn(batch.sequences)
    return Batch(batch.dense, drawn(batch.sparse), sequences, batch.labels, batch.weights, batch.groups)
