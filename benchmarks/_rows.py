"""Prepared folders of any vocabulary size, made without raw files: Criteo's shape, and a shop's with histories."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from recsys_emb.data.schema import CategoricalField, DatasetSchema, SequenceField
from recsys_emb.data.sources._planted import scale_cardinalities
from recsys_emb.data.store import FORMAT_VERSION
from recsys_emb.data.writer import SplitWriter


def criteo_rows(folder: Path, ids: int, rows: int, splits: Sequence[str] = ("train", "valid")) -> None:
    """26 fields of Criteo's relative sizes, Zipf ids, 13 dense values; all splits hold the same rows."""
    rng = np.random.default_rng(1)
    sizes = scale_cardinalities(ids)
    names = [f"C{i + 1}" for i in range(len(sizes))]
    columns = [zipf(rng, n, rows) for n in sizes]
    schema = DatasetSchema(
        dense=tuple(f"I{i + 1}" for i in range(13)),
        categorical=tuple(CategoricalField(name=n, vocabulary=n) for n in names),
        vocabularies=dict(zip(names, sizes)),
    )
    _write(folder, schema, columns, dict(zip(names, columns)), {}, rng, splits)


def shop_rows(folder: Path, rows: int) -> None:
    """A user, an item, its category, and histories of items and categories, with the sizes of Amazon Beauty 5-core.

    Histories have 1 to 50 items, a geometric number with that dataset's mean.
    """
    rng = np.random.default_rng(1)
    sizes = {"user_id": 22_364, "item_id": 12_102, "category_id": 1_222}
    columns = {n: zipf(rng, size, rows) for n, size in sizes.items()}
    lengths = np.minimum(rng.geometric(1 / 9, rows), 50)
    history = {f: (zipf(rng, sizes[v], int(lengths.sum())), lengths) for f, v in _HISTORIES.items()}
    schema = DatasetSchema(
        categorical=tuple(CategoricalField(name=n, vocabulary=n) for n in sizes),
        sequences=(
            SequenceField(name="item_history", vocabulary="item_id", target="item_id", max_length=50),
            SequenceField(
                name="category_history",
                vocabulary="category_id",
                target="category_id",
                max_length=50,
                aligned_with="item_history",
            ),
        ),
        vocabularies=sizes,
    )
    looked = {v: np.concatenate([columns[v], history[f][0]]) for f, v in _HISTORIES.items()}
    _write(folder, schema, list(columns.values()), {**columns, **looked}, history, rng)


_HISTORIES = {"item_history": "item_id", "category_history": "category_id"}


def zipf(rng: np.random.Generator, size: int, rows: int) -> np.ndarray:
    """Ids of frequency about 1 / (id + 1), int32 [rows]."""
    return np.minimum((size + 1.0) ** rng.random(rows), size).astype(np.int32) - 1


def _write(
    folder: Path,
    schema: DatasetSchema,
    columns: list[np.ndarray],
    looked: dict[str, np.ndarray],
    jagged: dict[str, tuple[np.ndarray, np.ndarray]],
    rng: np.random.Generator,
    splits: Sequence[str] = ("train", "valid"),
) -> None:
    """The folder of ``store.py``. Counts fall with the id, as an encoder's do: those of the draws, put in order."""
    (folder / "counts").mkdir(parents=True)
    rows = len(columns[0])
    labels = (rng.random(rows) < 0.25).astype(np.uint8)
    dense = rng.normal(size=(rows, len(schema.dense))).astype(np.float32)
    everything = np.ones(rows, dtype=bool)
    for split in splits:
        writer = SplitWriter(folder / split, schema)
        writer.append(everything, labels, np.empty(0, np.float32), dense, np.stack(columns, axis=1), jagged)
        writer.close()
    for name, size in schema.vocabularies.items():
        counts = np.bincount(looked[name], minlength=size)
        counts[1:] = -np.sort(-counts[1:])
        np.save(folder / "counts" / f"{name}.npy", counts)
    (folder / "schema.json").write_text(schema.model_dump_json())
    (folder / "dataset.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "source": "benchmark"}))
