"""What a prepared dataset holds, read from its manifest and the sizes of its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys_emb.data.parts import BASE, state_names
from recsys_emb.data.schema import CategoricalField, SequenceField
from recsys_emb.data.sources.base import Note
from recsys_emb.data.store import EncodedDataset, open_dataset


def describe(path: str | Path) -> dict[str, Any]:
    """Rows, click rates, fields, bytes and origin of a prepared dataset in its latest state, ready for JSON.

    ``states`` has, oldest first, a state's name, the rows of its last part, their click rate and the ids that there are
    then (null for hashes). ``fields`` has, per field, its kind, and for fields with a vocabulary its number of ids
    (null for hashes), the share of its values in valid and in test that are out of the vocabulary.

    Raises:
        UserError: not a prepared dataset.
    """
    dataset = open_dataset(path)
    manifest, schema = open_dataset(path, BASE).manifest, dataset.schema
    states = [_state(open_dataset(path, name)) for name in state_names(dataset.path)]
    appended = states[1:]
    rows, clicked = dict(manifest["rows"]), dict(manifest["click_rate"])
    if appended:
        clicks = rows["train"] * clicked["train"] + sum(s["rows"] * s["click_rate"] for s in appended)
        rows["train"] += sum(s["rows"] for s in appended)
        clicked["train"] = clicks / rows["train"]
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
        "states": states,
        "rows": rows,
        "click_rate": clicked,
        "rejected": manifest["rejected"],
        "notes": [str(Note(**note)) for note in manifest["notes"]],
        "total_ids": None if hashed else sum(schema.vocabularies.values()),
        "vocabulary_bytes": dataset.manifest["vocabulary_bytes"],
        "bytes": sum(f.stat().st_size for f in dataset.path.rglob("*") if f.is_file()),
        "bayes": manifest["bayes"],
        "fields": [*dense, *(one(f) for f in schema.embedded)],
    }


def _state(dataset: EncodedDataset) -> dict[str, Any]:
    rows, rate = dataset.manifest["rows"], dataset.manifest["click_rate"]
    total = sum(rows.values())
    return {
        "name": dataset.state,
        "rows": total,
        "click_rate": sum(rows[split] * rate[split] for split in rows) / total,
        "ids": None if dataset.schema.ids == "hash64" else sum(dataset.schema.vocabularies.values()),
    }
