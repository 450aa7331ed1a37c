"""What pydantic found wrong with a user's settings, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from recsys_emb.option_docs import document


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first mistake of a ValidationError as ``key: what was wrong, what was given; what is allowed``.

    A mistake that is not of one key, such as of two that do not go together, has none before it.
    """
    first = error.errors()[0]
    path = [str(p) for p in first["loc"]]
    key = ".".join([prefix, *path] if prefix else path)
    where = f"{key}: " if key else ""
    if first["type"] == "extra_forbidden":
        keys = [field.alias or name for name, field in _section(model, path[:-1]).model_fields.items()]
        close = difflib.get_close_matches(path[-1], keys, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{where}unknown key{hint}; allowed: {', '.join(keys) or 'none'}"
    if first["type"] == "missing":
        return f"{where}missing"
    if first["type"] == "value_error":  # raised by our own validators: the message says it all
        return f"{where}{first['ctx']['error']}"
    message = f"{where}{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
    return message if first["type"] in _SAY_IT_ALL else f"{message}{_allowed(model, path)}"


_SAY_IT_ALL = ("literal_error", "enum")


def _allowed(model: type[BaseModel], path: Sequence[str]) -> str:
    """What a field may be, for the end of a message; nothing where the mistake is in no field."""
    at = next((i for i in range(len(path)) if path[i] not in _section(model, path[:i]).model_fields), len(path))
    if not at:
        return ""
    options = {option["key"]: option["allowed"] for option in document(_section(model, path[: at - 1]))}
    return f"; allowed: {options[path[at - 1]]}"


def _section(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    """The model that stands at ``path``, through lists too; the last one met where the path leads out of models."""
    for part in path:
        if part.isdigit():
            continue
        if part not in model.model_fields:
            break
        model = next(_models(model.model_fields[part].annotation), model)
    return model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)
