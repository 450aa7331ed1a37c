"""``KEY=VALUE`` texts of the command line, such as ``training.epochs=3``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from recsys_emb.errors import UserError

_PART = r"""(?:"[^"]*"|'[^']*'|[^."'=]+)"""
_TEXT = re.compile(rf"({_PART}(?:\.{_PART})*)=(.*)", re.DOTALL)


def place(tree: dict[str, Any], text: str, flag: str, example: str, parse: Callable[[str], Any]) -> None:
    """Sets what ``text`` says in nested mappings; sections that are not there yet are made.

    Args:
        tree: is changed.
        text: ``key=value`` or ``section.key=value``; a name that holds dots stands in quotes, ``widths."C.1"=4``.
        flag: that the text was given with, for messages.
        example: a right text, for messages.
        parse: of the value; raises ValueError when it is none.

    Raises:
        UserError: no ``=``, no value, or a section that is a value.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        raise UserError(f"{flag} {text!r}: expected KEY=VALUE such as {example}; a name with dots stands in quotes")
    *parents, last = (part[1:-1] if part[0] in "\"'" else part for part in re.findall(_PART, match[1]))
    node = tree
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise UserError(f"{flag} {text!r}: {part!r} is a value, not a section")
    try:
        node[last] = parse(match[2])
    except ValueError:
        raise UserError(f"{flag} {text!r}: {match[2]!r} is not a YAML value") from None
