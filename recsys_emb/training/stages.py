"""What a run consists of, as data: backends list stages, the runner carries them out without knowing the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Carry:
    """What goes on from the stages before.

    Attributes:
        weights: of model and embedding; without, they start anew.
        optimizer: the state of the last training's optimizer; only where every shape stays as it was.
        start: weights of the best evaluation so far, or those that the last training started with.
    """

    weights: bool = True
    optimizer: bool = False
    start: Literal["best", "initial"] = "best"

    def __post_init__(self) -> None:
        if self.optimizer and not (self.weights and self.start == "best"):
            raise ValueError("Carry: an optimizer's state goes with the best weights, not with others")

    @property
    def best(self) -> bool:
        """The model goes on as it is."""
        return self.weights and self.start == "best"


@dataclass(frozen=True)
class Train:
    """Trains model and embedding as the run's config says, until its epochs or patience are used up.

    The first stage of a run has nothing to carry: it starts from new weights.
    """

    name: str = "train"
    carry: Carry = Carry()


@dataclass(frozen=True)
class Search:
    """Calls the backend's ``search`` with a function that scores its present form on the validation split.

    ``rows``: score on about so many rows, spread evenly over the split and always the same; None for all.
    """

    name: str = "search"
    carry: Carry = Carry()
    rows: int | None = None


@dataclass(frozen=True)
class Compact:
    """Replaces the backend by its serving form."""

    name: str = "compact"
    carry: Carry = Carry()


Stage = Train | Search | Compact
