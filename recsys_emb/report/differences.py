"""Which settings tell runs apart, and what to call them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recsys_emb.sizes import in_mb

Row = Mapping[str, Any]

ELSEWHERE = (
    *("seed", "model.name", "embedding.backend", "embedding.budget", "data.path"),
    *("compact.method", "compact.budget"),
)
"""Keys of a config that a report shows in a place of their own."""


def differing(rows: Sequence[Row]) -> list[str]:
    """Keys by which the settings of the rows differ, sorted, beside those shown elsewhere.

    Options of a model, a backend or a post-training method are compared among the rows that have it: those of two
    methods differ, and mean nothing to each other. A key that a config lacks is null.
    """
    settings = [settings_of(row) for row in rows]
    keys = sorted({key for own in settings for key in own} - set(ELSEWHERE))
    return [key for key in keys if _differs(key, settings)]


def _differs(key: str, settings: Sequence[Mapping[str, Any]]) -> bool:
    values: dict[Any, set[str]] = defaultdict(set)
    for own in settings:
        values[_owner(key, own)].add(repr(own.get(key)))
    return any(len(found) > 1 for found in values.values())


def _owner(key: str, settings: Mapping[str, Any]) -> Any:
    """What a key is an option of."""
    if key.startswith("embedding.options."):
        return settings.get("embedding.backend")
    if key.startswith("model.") and key != "model.embedding_dim":
        return settings.get("model.name")
    return settings.get("compact.method") if key.startswith("compact.") else None


def label(row: Row) -> str:
    """What a run trained: ``"deepfm / hash"``."""
    return f"{row['model']} / {row['backend']}"


def names(rows: Sequence[Row]) -> list[str]:
    """The labels of rows, without the model where all have the same."""
    models = {row["model"] for row in rows}
    return [label(row) if len(models) > 1 else str(row["backend"]) for row in rows]


def titles(rows: Sequence[Row]) -> list[str]:
    """One line a row that tells it from the others: its name, and the settings and the budget where they do."""
    named = [", ".join(filter(None, (name, row["settings"]))) for name, row in zip(names(rows), rows)]
    return [
        f"{name}, {budget_in_words(row)}" if named.count(name) > 1 and row["budget_bytes"] is not None else name
        for name, row in zip(named, rows)
    ]


def budget_in_words(row: Row) -> str:
    """``"budget 0.136 MB"``, always in MB; nothing where there is none."""
    return "" if row["budget_bytes"] is None else f"budget {in_mb(row['budget_bytes'])} MB"


def notes(row: Row) -> str:
    """What stands small beneath a row's name: its budget and settings."""
    return ", ".join(filter(None, (budget_in_words(row), row["settings"])))


def in_words(row: Row, keys: Iterable[str]) -> str:
    """``"learning_rate=0.01, hidden=[400, 400]"``: the row's values of those keys that it has."""
    settings = settings_of(row)
    return ", ".join(f"{name}={written(settings[key])}" for key, name in short_names(keys).items() if key in settings)


def written(value: Any) -> str:
    """A setting as YAML has it: ``null``, ``true``, ``[400, 400]``."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The end of each path, as much as tells it from the others."""
    keys = list(keys)
    return {key: _short(key, keys) for key in keys}


def brief(name: str) -> str:
    """A group of tables by its first: ``"C16 + 3 more"`` of ``"C16+C21+C12+C3"``."""
    first, *more = name.split("+")
    return f"{first} + {len(more)} more" if len(more) > 1 else name


def _short(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")
    for n in range(1, len(parts)):
        end = "." + ".".join(parts[-n:])
        if sum(f".{other}".endswith(end) for other in keys) == 1:
            return end[1:]
    return key


def settings_of(row: Row) -> dict[str, Any]:
    """The config of a report by key, and under what it ran, where the report says so."""
    ran = {f"ran with {key}": row[key] for key in ("device", "precision", "processes") if row.get(key) is not None}
    return {**_flattened(row["config"]), **ran}


def _flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, ``{"training.epochs": 3}``."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flattened(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
