"""Arrays of several parts read as one, gathered from each part's memory-mapped file; nothing is copied before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from recsys_emb.data.schema import OOV_ID, CategoricalField, DatasetSchema, SequenceField
from recsys_emb.data.split import Jagged, Split


class Chained:
    """Arrays one after another, read as ``BatchLoader`` reads a tensor: by a slice, or by row numbers.

    Args:
        pieces: [n_i] or [n_i, columns], of one type.
        shifts: what is added to each piece's values; nothing when absent.
        sizes: ids from these on, one number or one a column, are read as out-of-vocabulary; None: all stay.
    """

    def __init__(
        self, pieces: Sequence[Tensor], shifts: Sequence[int] | None = None, sizes: Tensor | None = None
    ) -> None:
        self._pieces, self._shifts, self._sizes = pieces, shifts, sizes
        self._ends = torch.tensor([len(p) for p in pieces]).cumsum(0)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), *self._pieces[0].shape[1:]])

    def __getitem__(self, rows: slice) -> Tensor:
        """Rows ``start`` to ``stop``, both given or absent."""
        start, stop, _ = rows.indices(len(self))
        taken = [self._pieces[0][:0]]
        for number, (piece, end) in enumerate(zip(self._pieces, self._ends.tolist())):
            first = end - len(piece)
            if first < stop and start < end:
                taken.append(self._shifted(number, piece[max(start - first, 0) : stop - first]))
        return self._known(torch.cat(taken))

    def index_select(self, dim: int, rows: Tensor) -> Tensor:
        """Of ``rows`` int64 [n], in their order; ``dim`` is 0."""
        of = torch.bucketize(rows, self._ends, right=True)
        if len(rows) and (int(rows.min()) < 0 or int(of.max()) == len(self._pieces)):
            raise IndexError(f"row beyond the {len(self)} there are")
        taken = self._pieces[0].new_empty([len(rows), *self._pieces[0].shape[1:]])
        for number in of.unique().tolist():
            at = torch.nonzero(of == number).squeeze(1)
            piece = self._pieces[number]
            own = rows[at] - (self._ends[number] - len(piece))
            taken[at] = self._shifted(number, piece.index_select(dim, own))
        return self._known(taken)

    def max(self) -> Tensor:
        """The largest value, of an array with any."""
        return torch.stack([piece.max() for piece in self._pieces if len(piece)]).max()

    def _shifted(self, number: int, taken: Tensor) -> Tensor:
        return taken if self._shifts is None else taken + self._shifts[number]

    def _known(self, ids: Tensor) -> Tensor:
        return ids if self._sizes is None else ids.where(ids < self._sizes, OOV_ID)


def chain(name: str, splits: Sequence[Split], schema: DatasetSchema) -> Split:
    """The rows of all splits in their order; ids that ``schema``'s vocabularies do not have are out-of-vocabulary.

    Args:
        name: of the whole.
        splits: of states of one folder, at least one.
        schema: of the state whose vocabularies count.
    """

    def joined(arrays: Sequence[Tensor], **how: Any) -> Tensor:
        return cast(Tensor, Chained(arrays, **how))  # it is read by rows alone

    def jagged(field: CategoricalField | SequenceField) -> Jagged:
        pieces = [split.jagged[field.name] for split in splits]
        *starts, end = torch.tensor([0, *(len(p.values) for p in pieces)]).cumsum(0).tolist()
        return replace(
            pieces[0],
            values=joined([p.values for p in pieces], sizes=torch.tensor(schema.vocabularies[field.vocabulary])),
            offsets=joined([*(p.offsets[:-1] for p in pieces), torch.tensor([end])], shifts=[*starts, 0]),
        )

    sizes = torch.tensor([schema.vocabularies[f.vocabulary] for f in schema.single_valued])
    weights = [split.weights for split in splits if split.weights is not None]
    return replace(
        splits[0],
        name=name,
        labels=joined([split.labels for split in splits]),
        weights=joined(weights) if weights else None,
        dense=joined([split.dense for split in splits]),
        ids=joined([split.ids for split in splits], sizes=sizes),
        jagged={field.name: jagged(field) for field in schema.jagged},
    )


def unknown_shares(split: Split, schema: DatasetSchema) -> dict[str, float]:
    """By field, the share of a split's values that are out-of-vocabulary; 0 where there are none."""

    def share(values: Tensor) -> Tensor:
        found = [(values[i : i + _SCANNED] == OOV_ID).sum(0) for i in range(0, max(len(values), 1), _SCANNED)]
        return torch.stack(found).sum(0) / max(len(values), 1)

    singles = dict(zip((f.name for f in schema.single_valued), share(split.ids).tolist()))
    return singles | {name: float(share(jagged.values)) for name, jagged in split.jagged.items()}


_SCANNED = 1 << 20
"""Rows that are looked at at a time."""
