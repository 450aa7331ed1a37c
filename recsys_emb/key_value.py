"""``KEY=VALUE`` texts of the command line, such as ``training.epochs=3``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recsys_emb.errors import UserError


def place(tree: dict[str, Any], text: str, flag: str, example: str, parse: Callable[[str], Any]) -> None:
    """Sets what ``text`` says in nested mappings; sections that are not there yet are made.

    Args:
        tree: is changed.
        text: ``key=value`` or ``section.key=value``.
        flag: that the text was given with, for messages.
        example: a right text, for messages.
        parse: of the value; raises ValueError when it is none.

    Raises:
        UserError: no ``=``, no value, or a section that is a value.
    """
    key, equals, given = text.partition("=")
    if not equals or not key:
        raise UserError(f"{flag} {text!r}: expected KEY=VALUE such as {example}")
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"{flag} {text!r}: {part!r} is a value, not a section")
    try:
        node[last] = parse(given)
    except ValueError:
        raise UserError(f"{flag} {text!r}: {given!r} is not a YAML value") from None
