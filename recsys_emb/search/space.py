"""The space of a search: distributions at config paths.

In YAML, a path has one of

    training.learning_rate: {float: [1.0e-4, 1.0e-2], log: true}
    model.cross_layers: {int: [1, 5]}
    model.hidden: {choices: [[400, 400], [200]]}
    embedding.backend: {choices: {full: {}, qr: {embedding.options.partitions: {int: [2, 3]}}}}
    embedding.options.widths.*: {choices: [0, 1, 2, 4, 8], groups: 10}

Choices that are a mapping bring paths of their own, searched only under that choice. ``*`` stands for every table;
with ``groups``, tables of like cardinality share one value where there are more tables than that.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from recsys_emb.errors import UserError
from recsys_emb.validation import explain

Keys = tuple[str, ...]
"""A config path as its parts; a part may hold dots, as names of tables do."""

Values = dict[Keys, Any]
"""One point of a space: what a trial sets in the config."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    groups: int | None = Field(None, ge=1, description="values at most for a path with *; absent: one per table")


class ChoicesForm(_Form):
    """One of a list of values; or of a mapping's keys, each with the paths that are searched under it."""

    choices: list[Any] | dict[Any, dict[str, Any]] = Field(min_length=1)

    def distribution(self) -> BaseDistribution:
        return CategoricalDistribution([_label(value) for value in self.choices])


class IntForm(_Form):
    """Whole numbers of a range, both ends included."""

    int: tuple[builtins.int, builtins.int]
    step: builtins.int = 1
    log: bool = False

    def distribution(self) -> BaseDistribution:
        return IntDistribution(*self.int, log=self.log, step=self.step)


class FloatForm(_Form):
    """Numbers of a range, both ends included."""

    float: tuple[builtins.float, builtins.float]
    step: builtins.float | None = None
    log: bool = False

    def distribution(self) -> BaseDistribution:
        return FloatDistribution(*self.float, log=self.log, step=self.step)


_FORMS: dict[str, type[ChoicesForm] | type[IntForm] | type[FloatForm]] = {
    "choices": ChoicesForm,
    "int": IntForm,
    "float": FloatForm,
}


def _label(value: Any) -> bool | int | float | str | None:
    """What Optuna stores of a choice: itself, or JSON of what it does not store."""
    return value if isinstance(value, (bool, int, float, str)) or value is None else json.dumps(value)


@dataclass(frozen=True)
class Param:
    """One searched value.

    Attributes:
        name: what Optuna calls it.
        paths: where the value goes in the config; several when tables share it.
        distribution: of Optuna; of labels where the values are choices.
        choices: the values of a categorical distribution, in its order.
        branches: per label, what is searched under that choice.
    """

    name: str
    paths: tuple[Keys, ...]
    distribution: BaseDistribution
    choices: tuple[Any, ...] = ()
    branches: Mapping[Any, tuple[Param, ...]] = field(default_factory=dict)

    def suggest(self, trial: BaseTrial) -> Any:
        """The label or number that Optuna draws."""
        d = self.distribution
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.name, d.low, d.high, step=d.step, log=d.log)
        if isinstance(d, FloatDistribution):
            return trial.suggest_float(self.name, d.low, d.high, step=d.step, log=d.log)
        assert isinstance(d, CategoricalDistribution)
        return trial.suggest_categorical(self.name, d.choices)

    def value(self, drawn: Any) -> Any:
        """What goes into the config for a label or number."""
        d = self.distribution
        return self.choices[d.choices.index(drawn)] if isinstance(d, CategoricalDistribution) else drawn

    def probes(self) -> list[Any]:
        """Labels or numbers whose values stand for all: every choice; the ends of a range and one between."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return list(d.choices)
        assert isinstance(d, (IntDistribution, FloatDistribution))
        between = d.low + d.step if d.step else d.low + 0.381966 * (d.high - d.low)
        return [d.low, min(between, d.high), d.high]

    def drawn_for(self, value: Any) -> Any:
        """The label or number that gives ``value``. Raises LookupError when none does."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            if value in self.choices:
                return d.choices[self.choices.index(value)]
        elif isinstance(value, (int, float)) and d._contains(float(value)):
            return value
        raise LookupError(self.name)


@dataclass(frozen=True)
class Space:
    """What a search draws from."""

    params: tuple[Param, ...]

    def suggest(self, trial: BaseTrial) -> Values:
        """Draws a point."""
        return dict(self._suggest(self.params, trial))

    def _suggest(self, params: Sequence[Param], trial: BaseTrial) -> Iterator[tuple[Keys, Any]]:
        for param in params:
            drawn = param.suggest(trial)
            for path in param.paths:
                yield path, param.value(drawn)
            yield from self._suggest(param.branches.get(drawn, ()), trial)

    def params_of(self, tree: Mapping[str, Any]) -> dict[str, Any] | None:
        """What Optuna would have drawn for a config; None where the space does not reach it."""
        try:
            return dict(self._params_of(self.params, tree))
        except LookupError:
            return None

    def _params_of(self, params: Sequence[Param], tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for param in params:
            values = [_at(tree, path) for path in param.paths]
            if any(v != values[0] for v in values):
                raise LookupError(param.name)
            drawn = param.drawn_for(values[0])
            yield param.name, drawn
            yield from self._params_of(param.branches.get(drawn, ()), tree)

    def probes(self) -> Iterator[tuple[Param, Values]]:
        """Every parameter at values that stand for all of its range, with the choices that lead to it."""
        return self._probes(self.params, {})

    def _probes(self, params: Sequence[Param], above: Values) -> Iterator[tuple[Param, Values]]:
        for param in params:
            for drawn in param.probes():
                point = above | dict.fromkeys(param.paths, param.value(drawn))
                yield param, point
                yield from self._probes(param.branches.get(drawn, ()), point)

    @property
    def widths(self) -> bool:
        """The space is one of widths per table and nothing else."""
        return all(path[:-1] == ("embedding", "options", "widths") for p in self.params for path in p.paths)


def _at(tree: Mapping[str, Any], path: Keys) -> Any:
    node: Any = tree
    for key in path:
        if not isinstance(node, Mapping):
            raise LookupError(key)
        node = node[key]
    return node


# -- from YAML --------------------------------------------------------------------------------------------------------


def parse_space(raw: Mapping[str, Any], tables: Mapping[str, int], where: str) -> Space:
    """A space as YAML has it.

    Args:
        raw: distributions by config path.
        tables: ids by table name, what ``*`` stands for.
        where: named in messages.

    Raises:
        UserError: no distribution, one that cannot be, or none that a search could draw from.
    """
    if not raw:
        raise UserError(f"{where}: empty; give config paths with choices, int or float")
    return Space(tuple(_parse(raw, tables, where, "")))


def _parse(raw: Mapping[str, Any], tables: Mapping[str, int], where: str, suffix: str) -> Iterator[Param]:
    for text, entry in raw.items():
        key = f"{where}.{text}"
        form = _form(entry, key)
        try:
            distribution = form.distribution()
        except ValueError as error:
            raise UserError(f"{key}: {' '.join(str(error).split())}") from None
        choices: tuple[Any, ...] = ()
        branches: dict[Any, tuple[Param, ...]] = {}
        if isinstance(form, ChoicesForm):
            choices = tuple(form.choices)
            if isinstance(form.choices, dict):
                branches = {
                    label: tuple(_parse(below, tables, f"{key}.{label}", f"[{label}]"))
                    for label, below in form.choices.items()
                }
        for name, paths in _places(str(text), tables, form.groups, key):
            yield Param(name + suffix, paths, distribution, choices, branches)


def _form(entry: Any, key: str) -> ChoicesForm | IntForm | FloatForm:
    kinds = [kind for kind in _FORMS if isinstance(entry, Mapping) and kind in entry]
    if len(kinds) != 1:
        raise UserError(f"{key}: expected one of {', '.join(_FORMS)}, such as {{choices: [1, 2]}}, got {entry!r}")
    cls = _FORMS[kinds[0]]
    try:
        return cls.model_validate(entry)
    except ValidationError as error:
        raise UserError(explain(error, cls, prefix=key)) from None


def _places(
    text: str, tables: Mapping[str, int], groups: int | None, key: str
) -> Iterator[tuple[str, tuple[Keys, ...]]]:
    """The name and the paths of each value that a path in YAML stands for."""
    keys = tuple(text.split("."))
    if "*" not in keys:
        if groups is not None:
            raise UserError(f"{key}: groups goes with a path that has *, such as embedding.options.widths.*")
        yield text, (keys,)
        return
    for names in grouped(tables, groups or len(tables)):
        name = ".".join("+".join(names) if k == "*" else k for k in keys)
        yield name, tuple(tuple(n if k == "*" else k for k in keys) for n in names)


def grouped(tables: Mapping[str, int], groups: int) -> list[list[str]]:
    """Names of tables of like cardinality, in at most ``groups`` groups of about as many tables, smallest first."""
    if len(tables) <= groups:
        return [[name] for name in tables]
    by_size = sorted(tables, key=tables.__getitem__)
    return [[by_size[i] for i in part] for part in np.array_split(np.arange(len(by_size)), groups)]
