"""What a prepared dataset holds, read from its manifest and the sizes of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys_emb.data.schema import CategoricalField, SequenceField
from recsys_emb.data.sources.base import Note
from recsys_emb.data.store import open_dataset


def describe(path: str | Path) -> dict[str, Any]:
    """Rows, click rates, fields, bytes and origin of a prepared dataset, ready for JSON.

    ``fields`` has, per field, its kind, and for fields with a vocabulary its number of ids (null for hashes), the share
    of its values in valid and in test that are out of the vocabulary.

    Raises:
        UserError: not a prepared dataset.
    """
    dataset = open_dataset(path)
    manifest, schema = dataset.manifest, dataset.schema
    hashed = schema.ids == "hash64"

    def one(field: CategoricalField | SequenceField) -> dict[str, Any]:
        sequence = isinstance(field, SequenceField)
        multi = isinstance(field, CategoricalField) and field.multi_valued
        return {
            "name": field.name,
            "kind": "sequence" if sequence else "multi-valued" if multi else "categorical",
            "vocabulary": field.vocabulary,
            "ids": None if hashed else schema.vocabularies[field.vocabulary],
            "oov_rate": None if hashed else {s: manifest["oov_rate"][s][field.name] for s in ("valid", "test")},
        }

    dense = [{"name": d["name"], "kind": f"dense ({d['transform']})"} for d in manifest["dense"]]
    return {
        "name": dataset.name,
        "source": manifest["source"],
        "options": manifest["options"],
        "min_count": manifest["min_count"],
        "ids": manifest["ids"],
        "rows": manifest["rows"],
        "click_rate": manifest["click_rate"],
        "rejected": manifest["rejected"],
        "notes": [str(Note(**note)) for note in manifest["notes"]],
        "total_ids": None if hashed else sum(schema.vocabularies.values()),
        "vocabulary_bytes": manifest["vocabulary_bytes"],
        "bytes": sum(f.stat().st_size for f in dataset.path.rglob("*") if f.is_file()),
        "bayes": dataset.bayes,
        "fields": [*dense, *(one(f) for f in schema.embedded)],
    }
