"""The config of a search: a YAML file that names a run to start from and what is searched around it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recsys_emb.config import GivenBudget, RunConfig, load_config, parse_config
from recsys_emb.data.store import EncodedDataset
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.embeddings.posttraining import posttraining_registry
from recsys_emb.errors import BudgetTooSmall, UserError
from recsys_emb.files import read_yaml
from recsys_emb.search.space import Keys, Space, Values, parse_space
from recsys_emb.sizes import budget_bytes
from recsys_emb.training.run import group_of, plan
from recsys_emb.training.task import Task, task_of
from recsys_emb.validation import explain

BASELINE_RULES: Final = ("full", "uniform", "uniform_widths")
"""Baselines that are no method's (baselines.py)."""


class SearchConfig(BaseModel):
    """One search as its YAML file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Path = Field(description="the YAML file of a run, relative to this one")
    set: tuple[str, ...] = Field((), description="KEY=VALUE texts that change the base, as --set does")
    space: dict[str, Any] = Field(description="distributions at config paths (space.py)")
    mode: Literal["budget", "pareto"] = Field(
        "budget", description="budget: the best AUC within the bytes; pareto: AUC against bytes"
    )
    budget: GivenBudget | tuple[GivenBudget, ...] = Field(
        None,
        description="a ratio to the base's full tables such as 0.1, or bytes such as 20MB; or a list of them, each of "
        "which gets a winner; --budget goes before",
    )
    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    pruner: Literal["none", "median", "halving"] = Field(
        "none", description="what ends a trial early, judged at every evaluation (training.eval_every)"
    )
    baselines: tuple[str, ...] = Field(
        ("full", "uniform", "mixed_dim", "unified", "uniform_widths", "quantized_svd", "pq"),
        description="trained first, to compare with: full, uniform, uniform_widths, or the name of a backend or of a "
        "post-training method",
    )
    scoring: Literal["train", "supernet"] = Field(
        "train", description="supernet: trials are scored on one network of nested widths, the best are trained"
    )
    retrain: int = Field(
        5,
        ge=1,
        description="how many of the best scored trials are carried out in full: those of a supernet are trained from "
        "scratch, those with a compact section are made of their trained base and fine-tuned as it says",
    )
    narrow: float = Field(
        0.0005,
        ge=0,
        description="supernet: tables of the best scored trials are left out where the score then falls by no more "
        "than by chance, nor by more than this, with all of them too",
    )
    tolerance: float = Field(
        0.001, ge=0, description="pareto: the winner is the smallest table within this much of the best AUC"
    )
    seed: int = Field(1, ge=0, description="of the sampler; the same seed gives the same study with one job")

    @field_validator("baselines")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = [*BASELINE_RULES, *backend_registry.names(), *posttraining_registry.names()]
        for name in names:
            if name not in known:
                raise ValueError(f"{name!r} is not known; allowed: {', '.join(dict.fromkeys(known))}")
        return names

    @model_validator(mode="after")
    def _fits_together(self) -> SearchConfig:
        if self.mode == "pareto" and isinstance(self.budget, tuple) and len(self.budget) > 1:
            raise ValueError(
                "budget: mode: pareto has one front, not a winner for each of several budgets; allowed: one"
            )
        if self.pruner != "none" and (self.mode == "pareto" or self.scoring == "supernet"):
            what = "mode: pareto" if self.mode == "pareto" else "scoring: supernet"
            raise ValueError(f"pruner: {self.pruner} does not go with {what}; allowed: none")
        return self


@dataclass(frozen=True)
class Search:
    """A search whose every part is known to fit.

    Attributes:
        config: the file.
        base: the run to start from.
        space: of its dataset.
        full_bytes: of its full tables.
        budgets: bytes by what the user wrote for them, each of which gets a winner; empty for any size.
        at: of one of several budgets, as the user wrote it; empty otherwise.
    """

    config: SearchConfig
    base: RunConfig
    space: Space
    full_bytes: int
    budgets: Mapping[str, int]
    at: str = ""

    @property
    def budget(self) -> int | None:
        """The bytes that all trials keep to."""
        return max(self.budgets.values(), default=None)

    def by_budget(self) -> list[Search]:
        """The searches that this one consists of, one a budget: itself where there are not several."""
        if len(self.budgets) < 2:
            return [self]
        return [replace(self, budgets={text: size}, at=text) for text, size in self.budgets.items()]

    def number(self, trial: int) -> str:
        """What a trial's number is called in the names of folders, which the searches of all budgets share."""
        return f"{self.at}-{trial:04d}" if self.at else f"{trial:04d}"

    def run_config(self, values: Values) -> RunConfig:
        """The base run with the values in their places, under the search's budget. Raises UserError in one line.

        What is made smaller after training has the budget then, and is trained at any size.
        """
        tree = self.tree()
        for path, value in values.items():
            _put(tree, path, value)
        if self.budget is not None:
            section = "compact" if tree.get("compact") else "embedding"
            if (section, "budget") not in values:
                _put(tree, (section, "budget"), self.budget)
        return parse_config(tree, source="trial")

    def with_settings(self, values: Values) -> Search:
        """The search around a base that has those values of a trial that are not the embedding's."""
        tree = self.tree()
        for path, value in values.items():
            if path[0] not in ("embedding", "compact"):
                _put(tree, path, value)
        return replace(self, base=parse_config(tree, source="baseline"))

    def tree(self) -> dict[str, Any]:
        """The base as nested mappings of what its files say; defaults are left out, since they depend on the rest."""
        return self.base.model_dump(mode="json", exclude_unset=True)

    @property
    def task(self) -> Task:
        """Whose main metric is searched for."""
        return task_of(self.base)

    @cached_property
    def dataset(self) -> EncodedDataset:
        return self.base.data.open()

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for two commands to work on one study."""
        own = self.config.model_dump(mode="json", exclude={"base", "set", "budget"})
        run = self.base.model_dump(mode="json", exclude={"data"})
        return {**own, "budget_bytes": [*self.budgets.values()], "base": run, "dataset": self.dataset.fingerprint}


def load_search(path: Path, overrides: Sequence[str] = (), budgets: Sequence[str] = ()) -> Search:
    """Reads a search and checks all of it: the base, every path of the space, every value of every distribution.

    Args:
        path: its YAML file.
        overrides: KEY=VALUE texts for the base, after those of the file.
        budgets: go before the file's.

    Raises:
        UserError: a mistake in any of these, in one line.
    """
    keys = f"the keys {', '.join(SearchConfig.model_fields)}"
    raw = read_yaml(path, "search", keys)
    if budgets:
        raw["budget"] = list(budgets)
    try:
        config = SearchConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"search {path}: {explain(error, SearchConfig)}") from None
    base_path = path.parent / config.base
    if {"base", "space"} <= read_yaml(base_path, f"search {path}: base", "those of a run").keys():
        raise UserError(f"search {path}: base: {base_path} is a search itself; name the YAML file of a run")
    base = load_config(base_path, [*config.set, *overrides])
    spec = group_of(base, base.data.open().schema)
    space = parse_space(config.space, {t.name: t.num_embeddings for t in spec.tables}, f"search {path}: space")
    search = Search(config, base, space, spec.full_bytes, _budgets(config, spec.full_bytes))
    _check(search, f"search {path}")
    return search


def _budgets(config: SearchConfig, full_bytes: int) -> dict[str, int]:
    """Bytes by what was written. Raises UserError on one given twice."""
    given = config.budget if isinstance(config.budget, tuple) else (config.budget,)
    found: dict[str, int] = {}
    for text in given:
        size = budget_bytes(text, full_bytes)
        if size is None:
            continue
        if size in found.values():
            raise UserError(f"budget: {text} is given twice ({size:,} bytes)")
        found[str(text).replace(" ", "")] = size
    return found


def _check(search: Search, where: str) -> None:
    """Raises UserError when a config cannot hold what the space may draw for it."""
    for param, values in search.space.probes():
        if param.paths[0][0] == "data":
            raise UserError(f"{where}: space.{param.name}: trials are compared on one dataset; search other keys")
        if param.paths[0][:2] == ("compact", "finetune"):
            raise UserError(
                f"{where}: space.{param.name}: candidates are scored before they are trained on; give it in the base, "
                "or with set"
            )
        try:
            _plan(search, search.run_config(values))
        except UserError as error:
            text = str(error).removeprefix("trial: ")
            raise UserError(f"{where}: space.{param.name}: {text}") from None
    if search.config.scoring == "supernet" and not (
        search.base.embedding.backend == "field_dim" and search.space.widths
    ):
        raise UserError(
            f"{where}: scoring: a supernet scores widths alone; allowed in space: embedding.options.widths.TABLE, "
            "with embedding.backend=field_dim"
        )


def _plan(search: Search, config: RunConfig) -> None:
    """Raises UserError when the config does not fit the dataset, whatever the budget."""
    try:
        plan(config, search.dataset)
    except BudgetTooSmall:
        return
    except UserError:
        plan(without_budget(config), search.dataset)


def without_budget(config: RunConfig) -> RunConfig:
    """The same at whatever size; what is still wrong with it is no matter of bytes."""
    sections = {"embedding": config.embedding, "compact": config.compact}
    free = {name: section.model_copy(update={"budget": None}) for name, section in sections.items() if section}
    return config.model_copy(update=free)


def _put(tree: dict[str, Any], path: Keys, value: Any) -> None:
    node: Any = tree
    for key in path[:-1]:
        if not isinstance(node, dict):
            break
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
    if not isinstance(node, dict):
        raise UserError(f"{'.'.join(path)}: {'.'.join(path[:-1])} is a value, not a section")
    node[path[-1]] = copy.deepcopy(value)
