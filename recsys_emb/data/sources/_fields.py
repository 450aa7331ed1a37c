"""What a source's options and fields are made of. Imports nothing that takes time, for the command line's help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from recsys_emb.data.schema import CategoricalField, SequenceField


class SourceOptions(BaseModel):
    """Options of a source, set by ``--option key=value``; each source extends this."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class DenseColumn:
    """A numeric field.

    ``standard`` subtracts the training mean and divides by the training deviation, ``log1p`` takes
    sign(x) log(1 + |x|) first; a missing value becomes the mean, 0. ``none`` keeps the value, missing becomes 0.
    """

    name: str
    transform: Literal["none", "standard", "log1p"] = "standard"


@dataclass(frozen=True)
class RawFields:
    """The fields of a source; the encoder adds the vocabulary sizes."""

    dense: tuple[DenseColumn, ...] = ()
    categorical: tuple[CategoricalField, ...] = ()
    sequences: tuple[SequenceField, ...] = ()
    user: str | None = None
    weighted: bool = False


def _numbers(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _some(ratios: tuple[float, float, float]) -> tuple[float, float, float]:
    if not 0 < sum(ratios) < float("inf"):
        raise ValueError("one of train, valid and test must be above 0")
    return ratios


Share = Annotated[float, Field(ge=0)]
Ratios = Annotated[tuple[Share, Share, Share], BeforeValidator(_numbers), AfterValidator(_some)]
"""Sizes of train, valid and test relative to one another, such as ``0.8,0.1,0.1``."""
