"""Small files: written whole or not at all, and read with every mistake in one line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from recsys_emb.errors import UserError

T = TypeVar("T")


def write_text(path: Path, text: str) -> None:
    """Writes beside and renames: no reader sees half a file, and a power cut leaves the old one or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The same of bytes."""
    beside = path.with_name(path.name + ".tmp")
    with open(beside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    fsync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """JSON with the same care."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def unused(path: Path) -> Path:
    """``path``, numbered (``NAME-2``, ``NAME-3``, ...) where it is taken."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def fsync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path) -> str:
    """Raises UserError when the file cannot be read or is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read, not UTF-8 ({error})") from None


def read_json(path: Path) -> dict[str, Any]:
    """Raises UserError when the file is missing, not JSON, or not an object."""
    text = read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON, so it cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json_as(path: Path, kind: type[T]) -> T:
    """A dataclass or pydantic model of a JSON file. Raises UserError when a value is missing or of another type."""
    try:
        return TypeAdapter(kind).validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        what = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
        raise UserError(f"{path}: {key + ': ' if key else ''}{' '.join(str(what).split())}") from None


def one_line(error: BaseException) -> str:
    """What an exception says, for a message of one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two values of one key would be two meanings."""
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return value


def read_json_lines(path: Path) -> list[Any]:
    """One value a line; a last line without its end was being written when the writer was killed, and is left out.

    Raises:
        UserError: unreadable file, or a line that is not JSON.
    """
    values = []
    *lines, _unfinished = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            values.append(json.loads(line))
        except (ValueError, RecursionError):
            raise UserError(f"{path} line {number}: not valid JSON; delete that line") from None
    return values


def read_yaml(path: Path, what: str, keys: str) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Args:
        path: the file.
        what: names it in messages, such as ``config`` or ``--schema``.
        keys: what the mapping should have, for the message.

    Raises:
        UserError: unreadable file, not YAML, or no mapping.
    """
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{what} {path}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, or a date such as 2020-13-01
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{what} {path}{line}: not valid YAML ({getattr(error, 'problem', None) or one_line(error)})"
        ) from None
    if not isinstance(tree, dict):
        raise UserError(f"{what} {path}: expected a mapping with {keys}")
    return tree
