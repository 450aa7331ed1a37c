"""How many raw values are unknown: not in the vocabularies, because training has not seen them, or too seldom."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from recsys_emb.data.schema import OOV_ID, DatasetSchema
from recsys_emb.data.split import Split

WARN_FROM = 0.5
"""Share of a field's values from which on one is told."""


class UnknownValues:
    """Counts the values of each field that have no id of their own, split by split of encoded rows.

    Args:
        schema: the rows' fields.
        fields: those to count, whose id 0 means that a value is unknown; all when absent.
    """

    def __init__(self, schema: DatasetSchema, fields: Collection[str] | None = None) -> None:
        self._schema = schema
        self._unknown = {f.name: 0 for f in schema.embedded if fields is None or f.name in fields}
        self._all = dict(self._unknown)

    def add(self, split: Split) -> None:
        """Encoded rows (``Encoder.encode``)."""
        ids = split.ids.numpy()
        for position, field in enumerate(self._schema.single_valued):
            self._count(field.name, ids[:, position])
        for name, jagged in split.jagged.items():
            self._count(name, jagged.values.numpy())

    def _count(self, field: str, ids: np.ndarray) -> None:
        if field not in self._all:
            return
        self._unknown[field] += len(ids) - int(np.count_nonzero(ids != OOV_ID))
        self._all[field] += len(ids)

    @property
    def shares(self) -> dict[str, float] | None:
        """``unknown_share``: by field that is counted, 0 where there are no values; None where ids are hashes."""
        if self._schema.ids == "hash64":
            return None
        return {name: unknown / max(self._all[name], 1) for name, unknown in self._unknown.items()}


def unknown_warnings(shares: Mapping[str, float] | None) -> list[str]:
    """A line for each field of which half the values or more are unknown; none where that cannot be known."""
    lines = []
    for field, share in (shares or {}).items():
        if share == 1:
            lines.append(f"field {field!r}: all values are unknown; are they written as in the training data?")
        elif share >= WARN_FROM:
            lines.append(f"field {field!r}: {share:.1%} of the values are unknown, training has not seen them")
    return lines
