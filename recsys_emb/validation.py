"""What pydantic found wrong with a user's settings, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, get_args, get_origin

from pydantic import BaseModel, ValidationError


def explain(error: ValidationError, model: type[BaseModel], prefix: str = "") -> str:
    """The first mistake of a ValidationError as ``key: what was wrong, what was given; what is allowed``."""
    first = error.errors()[0]
    path = [str(p) for p in first["loc"]]
    key = ".".join([prefix, *path] if prefix else path) or "config"
    if first["type"] == "extra_forbidden":
        keys = list(_section(model, path[:-1]).model_fields)
        close = difflib.get_close_matches(path[-1], keys, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        return f"{key}: unknown key{hint}; allowed: {', '.join(keys) or 'none'}"
    if first["type"] == "missing":
        return f"{key}: missing"
    if first["type"] == "value_error":  # raised by our own validators: the message says it all
        return f"{key}: {first['ctx']['error']}"
    return f"{key}: {first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"


def _section(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel]:
    for part in path:
        if part not in model.model_fields:
            break
        annotation = model.model_fields[part].annotation
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return model
