"""What a run consists of, as data: backends list stages, the runner carries them out without knowing the method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class InitFrom:
    """What a stage is initialised from.

    Attributes:
        weights: take those of model and embedding from the stages before; without, they start anew.
        optimizer: take the state of the last training's optimizer, too; only where every shape stays as it was.
        checkpoint: weights of the best evaluation so far, or those that the last training started with.
    """

    weights: bool = True
    optimizer: bool = False
    checkpoint: Literal["best", "initial"] = "best"

    def __post_init__(self) -> None:
        if self.optimizer and not self.as_it_is:
            raise ValueError("InitFrom: an optimizer's state goes with the best weights, not with others")

    @property
    def as_it_is(self) -> bool:
        """The model goes on as the stage before left it."""
        return self.weights and self.checkpoint == "best"


@dataclass(frozen=True)
class Train:
    """Trains model and embedding as the run's config says, until its epochs or patience are used up.

    The first stage of a run starts from new weights.
    """

    name: str = "train"
    init: InitFrom = InitFrom()


@dataclass(frozen=True)
class Search:
    """Calls the backend's ``search`` with a function that scores its present form on the validation split.

    ``rows``: score on about so many rows, spread evenly over the split and always the same; None for all.
    """

    name: str = "search"
    init: InitFrom = InitFrom()
    rows: int | None = None


@dataclass(frozen=True)
class Compact:
    """Replaces the backend by its serving form."""

    name: str = "compact"
    init: InitFrom = InitFrom()


Stage = Train | Search | Compact
