"""What gives raw rows their ids and scales, and in what two such differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys_emb.data.schema import CategoricalField, DatasetSchema, SequenceField

_VOCABULARIES = "vocabularies/"


@dataclass(frozen=True)
class Encoding:
    """Equal ones give equal ids and values to equal rows; equal sizes are not enough.

    Attributes:
        schema: the fields and the sizes of their vocabularies.
        dense: what was fitted on each dense field, as ``FittedDense`` is dumped; None where that is not known.
        checksums: of files by relative path; those of vocabularies count.
    """

    schema: DatasetSchema
    dense: Sequence[Mapping[str, Any]] | None
    checksums: Mapping[str, str]

    @property
    def vocabularies(self) -> dict[str, str]:
        """The checksums of the vocabularies' files."""
        return {path: checksum for path, checksum in self.checksums.items() if path.startswith(_VOCABULARIES)}

    @property
    def fingerprint(self) -> str:
        """Digest of vocabularies and dense fields (BLAKE2b, 16 bytes, hexadecimal)."""
        text = json.dumps([self.vocabularies, self.dense], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def difference(self, other: Encoding) -> str | None:
        """The first thing in which ``other`` is not like this one, named for a message; None when they are alike."""
        known = self.dense is not None and other.dense is not None
        one, another = (described(e.schema, e.dense if known else None) for e in (self, other))
        if wrong := field_difference(one, another):
            return wrong
        for name, size in self.schema.vocabularies.items():
            path, found = f"{_VOCABULARIES}{name}.arrow", other.schema.vocabularies[name]
            if found != size:
                return f"vocabulary {name!r} has {found:,} ids, not {size:,}"
            if self.vocabularies and self.vocabularies.get(path) != other.vocabularies.get(path):
                return f"vocabulary {name!r} holds other values"
        for wanted, given in zip(self.dense or (), other.dense or ()):
            if wanted != given:
                return f"dense field {wanted.get('name')!r} is scaled by other statistics"
        for key in ("user", "weighted", "ids"):
            wanted, given = getattr(self.schema, key), getattr(other.schema, key)
            if wanted != given:
                return f"{key} is {_word(given)}, not {_word(wanted)}"
        if self.schema != other.schema:
            return "its fields are in another order"
        return None if self.fingerprint == other.fingerprint else "its vocabularies or statistics are others"


def described(schema: DatasetSchema, dense: Sequence[Mapping[str, Any]] | None) -> dict[str, str]:
    """How each field is read, in words, by name."""
    transforms = {d.get("name"): f" ({d.get('transform')})" for d in dense or ()}
    numbers = {name: f"dense{transforms.get(name, '')}" for name in schema.dense}
    return numbers | describe_embedded(schema.categorical, schema.sequences)


def describe_embedded(categorical: Iterable[CategoricalField], sequences: Iterable[SequenceField]) -> dict[str, str]:
    """How each is read, in words, by name: ``categorical, vocabulary item``."""
    words = {}
    for field in categorical:
        words[field.name] = f"{'multi-valued' if field.multi_valued else 'categorical'}, vocabulary {field.vocabulary}"
    for s in sequences:
        aligned = f", aligned with {s.aligned_with}" if s.aligned_with else ""
        words[s.name] = f"a sequence of {s.target}, vocabulary {s.vocabulary}, at most {s.max_length}{aligned}"
    return words


def field_difference(wanted: Mapping[str, str], given: Mapping[str, str]) -> str | None:
    """The first field of ``given`` that is not read as in ``wanted`` (``described``); None when there is none."""
    for name, how in wanted.items():
        if name not in given:
            return f"it has no field {name!r} ({how})"
        if given[name] != how:
            return f"field {name!r} is {given[name]}, not {how}"
    unknown = [name for name in given if name not in wanted]
    return f"it has a field {unknown[0]!r} too many" if unknown else None


def _word(value: Any) -> str:
    return "absent" if value is None else str(value)
