"""What a run consists of, as data: backends list stages, the runner carries them out without knowing the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from recsys_emb.sizes import Budget


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
class Distil:
    """Learning from another model's predictions.

    Attributes:
        teacher: the stage whose model predicts.
        weight: of the distance to its predictions in the loss, 0 to 1; the labels have the rest.
    """

    teacher: str
    weight: float


@dataclass(frozen=True)
class Bilevel:
    """Architecture parameters (role ``arch``) learn from other rows than the weights.

    The weights never see these rows, and the validation split is neither: it goes on to judge and to report.

    Attributes:
        every: steps of the weights between two of the architecture's.
        one_in: of so many training rows one is held out for the architecture.
    """

    every: int = 1
    one_in: int = 10

    def __post_init__(self) -> None:
        if self.every < 1 or self.one_in < 2:
            raise ValueError(f"Bilevel: every {self.every} from 1, one_in {self.one_in} from 2")


@dataclass(frozen=True)
class Train:
    """Trains model and embedding until epochs or patience are used up.

    The first stage of a run starts from new weights.

    Attributes:
        settings: what is different from the run's ``training`` section, by its keys.
        distil: learn from an earlier stage's model.
        keep_start: the weights that it starts with are evaluated too, and stay when nothing beats them.
        bilevel: architecture parameters take steps of their own; without, they are trained like weights.
    """

    name: str = "train"
    init: InitFrom = InitFrom()
    settings: Mapping[str, Any] = field(default_factory=dict)
    distil: Distil | None = None
    keep_start: bool = False
    bilevel: Bilevel | None = None


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
    """Replaces the backend by its serving form, or by what a post-training method makes of that.

    Attributes:
        method: the post-training method, if one.
        budget: of the method, as users write budgets.
        options: the method's own options.
        trainable: the floats of the form are to be trained on.
    """

    name: str = "compact"
    init: InitFrom = InitFrom()
    method: str | None = None
    budget: Budget = None
    options: Any = None
    trainable: bool = False


Stage = Train | Search | Compact
