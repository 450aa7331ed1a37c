"""A source and its options as a user gives them: a name, ``key=value`` texts, a YAML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from recsys_emb.config import explain
from recsys_emb.data.sources.base import Source, source_registry
from recsys_emb.errors import UserError


def make_source(
    name: str,
    path: Path | None = None,
    schema: Path | None = None,
    options: Sequence[str] | Mapping[str, Any] = (),
) -> Source:
    """The source ``name`` with its options.

    Args:
        name: one of ``recsys-emb data list``.
        path: what to read.
        schema: a YAML file of options; for ``table`` it describes the columns.
        options: texts ``key=value`` or ``key.key=value``, values as in YAML; or a mapping, such as the ``options`` of a
            prepared dataset's manifest. They go before those of ``schema``.

    Raises:
        UserError: unknown source, unknown option or value of the wrong type, no input, unreadable schema.
    """
    cls = source_registry.get(name)
    if cls.needs_input and path is None:
        raise UserError(f"source {name!r} reads files: pass --input PATH")
    if not cls.needs_input and path is not None:
        raise UserError(f"source {name!r} makes its rows itself: leave out --input")
    tree = {} if schema is None else _read_yaml(schema)
    if isinstance(options, Mapping):
        tree.update(options)
    else:
        for text in options:
            _set(tree, text)
    try:
        parsed = cls.Options.model_validate(tree)
    except ValidationError as error:
        where = f"--schema {schema}" if schema is not None else f"source {name!r}"
        required = any(f.is_required() for f in cls.Options.model_fields.values())
        hint = "; describe the columns in a YAML file and pass --schema FILE" if required and schema is None else ""
        raise UserError(f"{where}: {explain(error, cls.Options)}{hint}") from None
    return cls(path, parsed)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--schema {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"--schema {path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from None
    if not isinstance(tree, dict):
        raise UserError(f"--schema {path}: expected a mapping with keys such as label, categorical and split")
    return tree


def _set(tree: dict[str, Any], text: str) -> None:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--option {text!r}: expected KEY=VALUE such as seed=1")
    *parents, last = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"--option {text!r}: {parent!r} is a value, not a section")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        node[last] = value
