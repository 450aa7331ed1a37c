"""A source and its options as a user gives them: a name, ``key=value`` texts, a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from recsys_emb.data.sources.base import Source, source_registry
from recsys_emb.errors import UserError
from recsys_emb.files import read_yaml
from recsys_emb.key_value import place
from recsys_emb.validation import explain


def make_source(
    name: str,
    path: Path | None = None,
    schema: Path | None = None,
    options: Sequence[str] | Mapping[str, Any] = (),
    base: Mapping[str, Any] | None = None,
) -> Source:
    """The source ``name`` with its options.

    Args:
        name: one of ``recsys-emb data list``.
        path: what to read.
        schema: a YAML file of options; for ``table`` it describes the columns.
        options: texts ``key=value`` or ``key.key=value``, values as in YAML; or a mapping, such as the ``options`` of a
            prepared dataset's manifest. They go before those of ``schema``.
        base: options that stand where there is no ``schema``; those of a dataset that this one is prepared like.

    Raises:
        UserError: unknown source, unknown option or value of the wrong type, no input, unreadable schema.
    """
    cls = source_registry.get(name)
    if cls.needs_input and path is None:
        raise UserError(f"source {name!r} reads files: pass --input PATH")
    if not cls.needs_input and path is not None:
        raise UserError(f"source {name!r} makes its rows itself: leave out --input")
    if schema is None:
        tree = deepcopy(dict(base or {}))
    else:
        tree = read_yaml(schema, "--schema", "keys such as label, categorical and split")
    if isinstance(options, Mapping):
        tree.update(options)
    else:
        for text in options:
            place(tree, text, "--option", "seed=1", _value)
    try:
        parsed = cls.Options.model_validate(tree)
    except ValidationError as error:
        where = f"--schema {schema}" if schema is not None else f"source {name!r}"
        required = any(f.is_required() for f in cls.Options.model_fields.values())
        hint = "; describe the columns in a YAML file and pass --schema FILE" if required and schema is None else ""
        raise UserError(f"{where}: {explain(error, cls.Options)}{hint}") from None
    return cls(path, parsed)


def _value(text: str) -> Any:
    """As in YAML; what is not YAML, such as a separator, is the text itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
