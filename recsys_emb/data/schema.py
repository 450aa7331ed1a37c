"""What a prepared dataset holds: its fields and vocabularies (``schema.json``)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

OOV_ID = 0
"""Id of out-of-vocabulary values in every vocabulary; its embedding row is trainable."""

HASHED_IDS = 2**63 - 1
"""Size of a vocabulary whose ids are 63-bit hashes of the raw values (``data prepare --ids hash64``)."""


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CategoricalField(_Frozen):
    """A field of one id per row, or of any number (``multi_valued``, pooled by the embedding layer)."""

    name: str
    vocabulary: str
    multi_valued: bool = False


class SequenceField(_Frozen):
    """A behaviour history, oldest first, embedded without pooling.

    ``target`` is the categorical field whose past values it lists; both use the same vocabulary. ``aligned_with``
    names an earlier sequence field that has the same length in every row (an item's category beside the item).
    """

    name: str
    vocabulary: str
    target: str
    max_length: int
    aligned_with: str | None = None


class DatasetSchema(_Frozen):
    """Fields of a prepared dataset, in the order of the stored columns.

    ``vocabularies`` maps a vocabulary's name to its number of ids, the out-of-vocabulary id 0 included.
    ``user`` names the categorical field that GAUC groups by. ``hashed_integers`` says of vocabularies whose ids are
    hashes whether the raw values are integers, texts otherwise: 7 and "7" have different hashes.
    """

    dense: tuple[str, ...] = ()
    categorical: tuple[CategoricalField, ...] = ()
    sequences: tuple[SequenceField, ...] = ()
    vocabularies: dict[str, int] = {}
    user: str | None = None
    weighted: bool = False
    ids: Literal["vocabulary", "hash64"] = "vocabulary"
    hashed_integers: dict[str, bool] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        fields: list[CategoricalField | SequenceField] = [*self.categorical, *self.sequences]
        names = [*self.dense, *(f.name for f in fields)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"field names used twice: {', '.join(twice)}")
        for kind, used in (("vocabulary", list(self.vocabularies)), ("field", [f.name for f in self.jagged])):
            for name in used:
                if name in ("", ".", "..") or set(name) & set("/\\\0"):
                    raise ValueError(f"{kind} {name!r}: the name must be usable as a file name")
        for name, size in self.vocabularies.items():
            if not 1 <= size <= HASHED_IDS:
                raise ValueError(f"vocabulary {name!r}: {size} ids, must be 1 or more")
        for f in fields:
            if f.vocabulary not in self.vocabularies:
                raise ValueError(f"field {f.name!r}: unknown vocabulary {f.vocabulary!r}")
        by_name = {f.name: f for f in self.categorical}
        for s in self.sequences:
            target = by_name.get(s.target)
            if target is None or target.vocabulary != s.vocabulary:
                raise ValueError(f"sequence {s.name!r}: target {s.target!r} is not a field of the same vocabulary")
        for i, s in enumerate(self.sequences):
            if s.max_length < 1:
                raise ValueError(f"sequence {s.name!r}: max_length {s.max_length}, must be 1 or more")
            if s.aligned_with is not None:
                other = next((e for e in self.sequences[:i] if e.name == s.aligned_with), None)
                if other is None:
                    raise ValueError(
                        f"sequence {s.name!r}: aligned_with {s.aligned_with!r} is no earlier sequence field"
                    )
                if other.max_length != s.max_length:
                    raise ValueError(f"sequence {s.name!r}: max_length is not that of {other.name!r}")
        if self.user is not None and (self.user not in by_name or by_name[self.user].multi_valued):
            raise ValueError(f"user {self.user!r} is not a single-valued categorical field")
        return self

    @property
    def embedded(self) -> list[CategoricalField | SequenceField]:
        """All fields with a vocabulary: single-valued, multi-valued, sequences."""
        return [*self.single_valued, *self.jagged]

    @property
    def single_valued(self) -> tuple[CategoricalField, ...]:
        return tuple(f for f in self.categorical if not f.multi_valued)

    @property
    def multi_valued(self) -> tuple[CategoricalField, ...]:
        return tuple(f for f in self.categorical if f.multi_valued)

    @property
    def jagged(self) -> list[CategoricalField | SequenceField]:
        """Fields of any number of values per row: multi-valued, sequences."""
        return [*self.multi_valued, *self.sequences]

    @property
    def sparse_keys(self) -> list[str]:
        """Keys of ``Batch.sparse``: single-valued fields first, then the multi-valued ones."""
        return [f.name for f in (*self.single_valued, *self.multi_valued)]

    @property
    def sequence_keys(self) -> list[str]:
        """Keys of ``Batch.sequences``."""
        return [f.name for f in self.sequences]
