"""What a sweep compares, and the settings that each method may choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys_emb.config import FinetuneConfig
from recsys_emb.embeddings.base import GroupSpec, backend_registry
from recsys_emb.embeddings.budget import backend_config
from recsys_emb.embeddings.posttraining import posttraining_registry
from recsys_emb.embeddings.posttraining.base import posttraining_options
from recsys_emb.errors import SettingError, UserError, settings_written_as
from recsys_emb.files import read_yaml
from recsys_emb.validation import explain


class Choice(BaseModel):
    """A method's own options, and a factor on ``training.l2_embedding``.

    The factor is an option of every trained method: rows that ids share, or that are multiplied, meet the same L2
    differently. (At vectors of standard deviation s, L2 on two factors acts 1 / s times as strongly as on their
    product.)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: dict[str, Any] = Field(default_factory=dict, description="the method's own options")
    l2: float = Field(1.0, ge=0, description="factor on training.l2_embedding")
    finetune: dict[str, Any] | None = Field(
        None, description="of a post-training method: train what it makes on, with these keys of compact.finetune"
    )

    def in_words(self) -> str:
        """``"bits 4, l2 x 0.1"``, or ``"default"``."""
        words = {**self.options, **({"l2": f"x {self.l2:g}"} if self.l2 != 1 else {}), **(self.finetune or {})}
        return ", ".join(f"{key} {value}" for key, value in words.items()) or "default"


class MethodSettings(BaseModel):
    """What a YAML file of settings says of one method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uses: str | None = Field(None, description="the method under a name of its own; absent: the name is the method")
    choices: tuple[Choice, ...] = Field((Choice(),), min_length=1, description="tried on the validation split")


Width = Callable[[GroupSpec, float | None], int]
"""The group of tables and the budget -> columns of a full table, as the model's ``embedding_dim``."""


@dataclass(frozen=True)
class Method:
    """A line of the tables.

    Attributes:
        name: shown, and unique.
        uses: the backend, or the post-training method.
        choices: of settings; the first is the default.
        kind: ``trained``, or ``after``: made of the trained full tables.
        own_size: has a figure without a budget.
        budgets: has a figure at every budget.
        width: of full tables that are narrower than the config's.
    """

    name: str
    uses: str
    choices: tuple[Choice, ...] = (Choice(),)
    kind: Literal["trained", "after"] = "trained"
    own_size: bool = False
    budgets: bool = True
    width: Width | None = None

    def check(self) -> None:
        """Raises UserError when a choice has an option that the method does not take."""
        for choice in self.choices:
            if self.kind == "after" and choice.l2 != 1:
                raise UserError(f"{self.name}: l2: is of trainings; this method is made of trained full tables")
            with settings_written_as(lambda setting: f"{self.name}: {setting}"):
                if self.kind == "trained":
                    backend_config(backend_registry.get(self.uses), choice.options)
                    if choice.finetune is not None:
                        raise SettingError("finetune", "goes with post-training methods")
                else:
                    posttraining_options(self.uses, choice.options)
                    self._check_finetune(choice)

    def _check_finetune(self, choice: Choice) -> None:
        try:
            FinetuneConfig.model_validate(choice.finetune or {})
        except ValidationError as error:
            raise UserError(f"{self.name}: {explain(error, FinetuneConfig, prefix='finetune')}") from None


def one_column_less(spec: GroupSpec, budget: float | None) -> int:
    """A control: what narrows no table much should neither gain nor lose by being narrow."""
    return spec.vector_dim - 1


def widest_within(spec: GroupSpec, budget: float | None) -> int:
    """Columns of a vector so that all tables stay within the budget, a first-order column included."""
    return int((budget or 1) * spec.embedding_dim) - (spec.embedding_dim - spec.vector_dim)


FULL = Method("full", "full", own_size=True, budgets=False)
_NARROW = (
    Method("full, one column narrower", "full", own_size=True, budgets=False, width=one_column_less),
    Method("full, smaller D", "full", width=widest_within),
)
_OF_ONE_SIZE = ("fp16", "int8", "int4")
_OF_A_SIZE_TOO = ("drop_unseen",)


def known_methods() -> dict[str, Method]:
    """All that can be swept, at the library's defaults: every registered method, post-training ones also with training
    after them, and narrower full tables."""
    after = [
        Method(
            name,
            name,
            kind="after",
            own_size=name in (*_OF_ONE_SIZE, *_OF_A_SIZE_TOO),
            budgets=name not in _OF_ONE_SIZE,
        )
        for name in posttraining_registry.names()
    ]
    tuned = [
        Method(f"{name}, trained on", name, (Choice(finetune={}),), "after")
        for name in posttraining_registry.names()
        if name not in _OF_ONE_SIZE
    ]
    trained = [Method(name, name) for name in backend_registry.names() if name != FULL.uses]
    return {method.name: method for method in (FULL, *_NARROW, *after, *tuned, *trained)}


def chosen_methods(names: Sequence[str] = (), settings: Path | None = None) -> tuple[Method, ...]:
    """The methods to sweep, full tables first: all are measured by them, and post-training methods made of them.

    Args:
        names: of the methods; empty for all.
        settings: a YAML file that gives methods a list of ``choices`` (``options``, ``l2``, ``finetune``); a name that
            is no method says which one it ``uses``.

    Raises:
        UserError: an unknown method or setting, or a file that cannot be read.
    """
    methods = known_methods()
    if settings is not None:
        where = f"--settings {settings}"
        for name, given in read_yaml(settings, "--settings", "methods, such as `hash: {choices: [...]}`").items():
            methods[str(name)] = _with_settings(methods, str(name), given, where)
    unknown = [name for name in names if name not in methods]
    if unknown:
        raise UserError(f"--methods {unknown[0]}: unknown method; allowed: {', '.join(methods)}")
    return tuple({FULL.name: methods[FULL.name], **{name: methods[name] for name in names or methods}}.values())


def _with_settings(methods: Mapping[str, Method], name: str, given: Any, where: str) -> Method:
    """A known method with the choices that a file gives it, or one more under a name of its own."""
    try:
        settings = MethodSettings.model_validate(given or {})
    except ValidationError as error:
        raise UserError(f"{where}: {explain(error, MethodSettings, prefix=name)}") from None
    uses = settings.uses or name
    if uses not in methods:
        key = name if settings.uses is None else f"{name}.uses: {uses}"
        raise UserError(f"{where}: {key}: unknown method; allowed: {', '.join(methods)}")
    if name == FULL.name and len(settings.choices) > 1:
        raise UserError(f"{where}: {name}: takes one choice; all methods are measured by it")
    method = replace(methods[uses], name=name, choices=settings.choices)
    try:
        method.check()
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return method
