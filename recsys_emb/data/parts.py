"""The states of a prepared folder: as it was prepared, and after each part that was appended to it.

DIR/                 the state ``base``
DIR/parts/NAME/      a prepared dataset in itself: the part's rows, all in train/, and the vocabularies, counts and
                     schema of the state that it makes. It is never changed: every state stays readable by its name.
"""

from __future__ import annotations

import re
from pathlib import Path

from recsys_emb.errors import UserError

BASE = "base"
PARTS = "parts"
_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"


def state_names(path: Path) -> list[str]:
    """``base`` and the parts, oldest first."""
    folders = (path / PARTS).iterdir() if (path / PARTS).is_dir() else ()
    made = [f.name for f in folders if not f.name.endswith(".partial") and (f / "dataset.json").is_file()]
    return [BASE, *sorted(made, key=place)]


def state_folder(path: Path, state: str) -> Path:
    """Where a state's schema and vocabularies, and the rows of its last part, are."""
    return path if state == BASE else path / PARTS / state


def check_next(path: Path, name: str) -> None:
    """Raises UserError unless ``name`` is one for the part that comes after all others."""
    if not re.fullmatch(_NAME, name) or name == BASE or name.endswith(".partial"):
        raise UserError(
            f"--name {name!r}: no name of a part; letters, digits, '_', '-' and '.', such as 2026-11-26, and not {BASE}"
        )
    *_, last = state_names(path)
    if last == name or (path / PARTS / name).exists():
        raise UserError(f"--name {name}: {path} has that part already; parts are never changed, name the next one")
    if last != BASE and place(name) < place(last):
        raise UserError(f"--name {name}: comes before {last}, the last part of {path}; parts are appended in order")


def place(name: str) -> tuple[tuple[int, int, str], ...]:
    """What parts are put in order by: numbers in a name count as numbers, so day-9 comes before day-10."""
    return tuple((0, int(t), "") if t.isdecimal() else (1, 0, t) for t in re.findall(r"[0-9]+|[^0-9]+", name))
