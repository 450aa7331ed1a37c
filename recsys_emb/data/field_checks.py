"""What looks as if a field had been declared as something else than it is: noted, for only the user can know."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_emb.data.schema import OOV_ID, CategoricalField, DatasetSchema
from recsys_emb.data.sources.base import Note

WEIGHED_ID = r"^[^:\s]+:[+-]?[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?$"
MOST = 0.5
"""Share of the values from which on one is told."""


class WeighedIds:
    """Counts values such as ``shoes:0.7`` of multi-valued fields: lists of ids with weights, which are read as ids."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, field: CategoricalField, distinct: pa.Array, codes: np.ndarray) -> None:
        """Values of a block: the distinct ones, and int32 [m], the positions of all among them."""
        found = np.zeros(len(distinct), dtype=bool)
        if not pa.types.is_integer(distinct.type):
            looks = pc.fill_null(pc.match_substring_regex(distinct, WEIGHED_ID), False)
            found = looks.to_numpy(zero_copy_only=False)
        weighed, total = self._counts.get(field.name, (0, 0))
        self._counts[field.name] = (weighed + int(found[codes].sum()), total + len(codes))

    def notes(self) -> list[Note]:
        """A note for every field of which most values look so."""
        return [
            Note(count, total, f"values of {name!r} look like id:weight; each is one id, for weights are not read")
            for name, (count, total) in self._counts.items()
            if count > MOST * total
        ]


class TargetValues:
    """Counts the values of sequences that never occur in the sequence's target, as where the two are written unlike.

    Values that training does not know are not looked at. Holds 5 bytes an id of a sequence's vocabulary, none where ids
    are hashes.
    """

    def __init__(self, schema: DatasetSchema) -> None:
        sequences = () if schema.ids == "hash64" else schema.sequences
        self._sequences = {s.name: s for s in sequences}
        self._positions = {f.name: i for i, f in enumerate(schema.single_valued)}
        sizes = {s.name: schema.vocabularies[s.vocabulary] for s in sequences}
        self._counts = {name: np.zeros(size, np.int32) for name, size in sizes.items()}
        self._occurs = {s.target: np.zeros(sizes[s.name], bool) for s in sequences}

    def add(self, ids: np.ndarray, jagged: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
        """Ids of a block's single-valued fields [n, F], and of its list fields with their lengths."""
        for target, occurs in self._occurs.items():
            occurs[ids[:, self._positions[target]]] = True
        for name, counts in self._counts.items():
            np.add.at(counts, jagged[name][0], 1)

    def notes(self) -> list[Note]:
        """A note for every sequence of which most values never occur in its target."""
        notes = []
        for name, counts in self._counts.items():
            target, known = self._sequences[name].target, int(counts[OOV_ID + 1 :].sum())
            strange = int(counts[OOV_ID + 1 :][~self._occurs[target][OOV_ID + 1 :]].sum())
            if strange > MOST * known:
                what = f"values of sequence {name!r} never occur in its target {target!r}; are both written alike?"
                notes.append(Note(strange, known, what))
        return notes
