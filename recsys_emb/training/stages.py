"""What a run consists of, as data: backends list stages, the runner carries them out without knowing the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Carry:
    """What goes on from the stage before.

    ``start`` says which weights: those of the best evaluation, or those the stage started with.
    """

    weights: bool = True
    optimizer: bool = False
    start: Literal["best", "initial"] = "best"


@dataclass(frozen=True)
class Train:
    """Trains model and embedding as the run's config says, until its epochs or patience are used up."""

    name: str = "train"
    carry: Carry | None = None


@dataclass(frozen=True)
class Search:
    """Calls the backend's ``search`` with a function that scores candidates on the validation split."""

    name: str = "search"
    carry: Carry = Carry()


@dataclass(frozen=True)
class Compact:
    """Replaces the backend by its serving form."""

    name: str = "compact"
    carry: Carry = Carry()


Stage = Train | Search | Compact
