"""A model as a function of tensors by field name, which is what an export holds. B rows.

dense                         float32 [B, Nd], as the dataset holds them; absent where there are none
NAME                          int64 [B], ids of a single-valued field
NAME.values, NAME.lengths     int64 [n] and [B], ids of a multi-valued or sequence field row after row, and how many a
                              row has; fields that are aligned have the same lengths
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from recsys_emb.data.batches import Batch
from recsys_emb.data.schema import CategoricalField, DatasetSchema, SequenceField
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel

DENSE = "dense"
Inputs = dict[str, Tensor]
"""A batch by field name."""


class ByField(nn.Module):
    """A model of a batch by field name: logits float32 [B].

    Args:
        model: in eval mode.
        schema: its fields.
    """

    def __init__(self, model: CTRModel, schema: DatasetSchema) -> None:
        super().__init__()
        self.model, self.schema = model, schema

    def forward(self, inputs: Inputs) -> Tensor:
        return self.model(self.batch(inputs))

    def batch(self, inputs: Inputs) -> Batch:
        """The rows as the model takes them; labels are 0."""
        schema = self.schema
        single, multi = len(schema.single_valued), len(schema.multi_valued)
        # All that has one entry a row in one stack, so that a trace knows all to be of one size.
        names = [f.name for f in schema.single_valued] + [_lengths_of(f) for f in schema.jagged]
        per_row = torch.stack([inputs[name] for name in names])
        ids, lengths = per_row.split([single, len(schema.jagged)])
        values = [inputs[_values_of(f)] for f in schema.jagged]
        dense = inputs[DENSE] if schema.dense else torch.zeros(per_row.shape[1], 0, device=per_row.device)
        sequences = None
        if schema.sequences:
            sequences = _kjt(schema.sequence_keys, ids[:0], lengths[multi:], values[multi:])
        return Batch(
            dense=dense,
            sparse=_kjt(schema.sparse_keys, ids, lengths[:multi], values[:multi]),
            sequences=sequences,
            labels=dense.new_zeros(per_row.shape[1]),
        )


def _kjt(keys: list[str], ids: Tensor, lengths: Tensor, values: list[Tensor]) -> KeyedJaggedTensor:
    """Single-valued ids [F, B], then jagged ones: lengths [J, B] and values [n] each."""
    rows = ids.shape[1]
    return KeyedJaggedTensor(
        keys,
        torch.cat([ids.flatten(), *values]),
        lengths=torch.cat([torch.ones_like(ids), lengths]).flatten(),
        stride=rows,
        length_per_key=[rows] * ids.shape[0] + [v.shape[0] for v in values],
    )


def _values_of(field: CategoricalField | SequenceField) -> str:
    return f"{field.name}.values"


def _lengths_of(field: CategoricalField | SequenceField) -> str:
    return f"{field.name}.lengths"


def by_field(batch: Batch, schema: DatasetSchema) -> Inputs:
    """A batch's tensors by field name."""
    inputs = {DENSE: batch.dense} if schema.dense else {}
    bags = batch.sparse.to_dict() | ({} if batch.sequences is None else batch.sequences.to_dict())
    for field in schema.single_valued:
        inputs[field.name] = bags[field.name].values()
    for other in schema.jagged:
        inputs[_values_of(other)] = bags[other.name].values()
        inputs[_lengths_of(other)] = bags[other.name].lengths()
    return inputs


def random_rows(schema: DatasetSchema, rows: int, seed: int = 0, least: int = 0) -> Inputs:
    """Rows of uniform ids and normal dense values; jagged fields have ``least`` to 3 (or their ``max_length``) ids."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int) -> Tensor:
        return torch.randint(low, high, (size,), generator=generator)

    inputs = {DENSE: torch.randn(rows, len(schema.dense), generator=generator)} if schema.dense else {}
    for field in schema.single_valued:
        inputs[field.name] = draw(0, schema.vocabularies[field.vocabulary], rows)
    for other in schema.jagged:
        most = min(3, other.max_length) if isinstance(other, SequenceField) else 3
        linked = other.aligned_with if isinstance(other, SequenceField) else None
        lengths = inputs[f"{linked}.lengths"] if linked else draw(min(least, most), most + 1, rows)
        inputs[_values_of(other)] = draw(0, schema.vocabularies[other.vocabulary], int(lengths.sum()))
        inputs[_lengths_of(other)] = lengths
    return inputs


@dataclass(frozen=True)
class Input:
    """One tensor that an export takes.

    Attributes:
        name: of the tensor.
        dtype: ``float32`` or ``int64``.
        shape: ``B`` rows, ``n`` ids of all rows, or a number.
        sizes: of each axis what it is called in a trace, or its size.
        field: whose values it holds; for ``dense`` all of them, in the order of the columns.
        ids: ids lie in 0..ids-1; None for lengths and dense values.
        vocabulary: what gives raw values their ids.
    """

    name: str
    dtype: str
    shape: list[str]
    sizes: tuple[str | int, ...]
    field: str | list[str]
    ids: int | None = None
    vocabulary: str | None = None

    def description(self) -> dict[str, Any]:
        """What an export says of it."""
        return {k: v for k, v in asdict(self).items() if k != "sizes" and v is not None}


def inputs_of(schema: DatasetSchema) -> list[Input]:
    """The tensors that ``ByField`` takes. Raises UserError when two would have one name."""
    found = list(_inputs(schema))
    names = [i.name for i in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"field {twice!r}: an export calls another input so; prepare the dataset with another name")
    return found


def _inputs(schema: DatasetSchema) -> Iterator[Input]:
    if schema.dense:
        columns = len(schema.dense)
        yield Input(DENSE, "float32", ["B", str(columns)], ("rows", columns), list(schema.dense))
    for field in schema.single_valued:
        size = schema.vocabularies[field.vocabulary]
        yield Input(field.name, "int64", ["B"], ("rows",), field.name, size, field.vocabulary)
    axes: dict[str, str] = {}
    for i, other in enumerate(schema.jagged):
        linked = other.aligned_with if isinstance(other, SequenceField) else None
        axes[other.name] = axes[linked] if linked else f"values_{i}"
        size, named = schema.vocabularies[other.vocabulary], other.name
        yield Input(_values_of(other), "int64", ["n"], (axes[named],), named, size, other.vocabulary)
        yield Input(_lengths_of(other), "int64", ["B"], ("rows",), named)
