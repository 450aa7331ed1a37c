"""What can be set, read from a pydantic model: for people who ask the command line."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from pydantic import BaseModel


def document(model: type[BaseModel], hidden: Collection[str] = ()) -> list[dict[str, Any]]:
    """Per option: ``key``, ``allowed`` in words, ``default``, and the ``description`` of its field."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return [_row(key, entry, definitions) for key, entry in schema.get("properties", {}).items() if key not in hidden]


def outline(model: type[BaseModel]) -> list[dict[str, Any]]:
    """``document`` with ``keys``, per option: the rows of what its value holds where that is a mapping, or several."""
    schema = model.model_json_schema()
    definitions = schema.get("$defs", {})
    return [
        {**_row(key, entry, definitions), "keys": [_row(k, e, definitions) for k, e in _inner(entry, definitions)]}
        for key, entry in schema.get("properties", {}).items()
    ]


def _row(key: str, entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "key": key,
        "allowed": _allowed(entry, definitions),
        "default": entry.get("default"),
        "description": entry.get("description", ""),
    }


def _inner(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The options of the mappings that a value is, or that it is a list of."""
    if "$ref" in entry:
        yield from definitions[entry["$ref"].rsplit("/", 1)[-1]].get("properties", {}).items()
    parts = [*entry.get("anyOf", ()), *([entry["items"]] if "items" in entry else ())]
    for part in parts:
        yield from _inner(part, definitions)


def _allowed(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """E.g. ``integer, 2 to 8, or null``."""
    if "$ref" in entry:
        return _allowed(definitions[entry["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in entry:
        return " or ".join(_allowed(e, definitions) for e in entry["anyOf"])
    if "const" in entry:
        return str(entry["const"])
    if "enum" in entry:
        return ", ".join(str(v) for v in entry["enum"])
    kind = entry.get("type", "anything")
    if kind == "array":
        items = entry.get("items") or (entry.get("prefixItems") or [{}])[0]
        return f"list of {_plural(_allowed(items, definitions))}"
    if kind == "object":
        values = entry.get("additionalProperties")
        return f"mapping to {_allowed(values, definitions)}" if isinstance(values, Mapping) else "mapping"
    return f"{kind}{_range(entry)}"


def _plural(text: str) -> str:
    """``integers from 1 or strings`` of ``integer from 1 or string``; what is no type stays as it is."""
    return " or ".join(
        re.sub(r"^(integer|number|string|boolean|mapping)\b", r"\1s", part) for part in text.split(" or ")
    )


def _range(entry: Mapping[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    bounds = [f"{word} {entry[key]:,}" for key, word in words.items() if key in entry]
    return f" {' '.join(bounds)}" if bounds else ""
