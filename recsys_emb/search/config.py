"""The config of a search: a YAML file that names a run to start from and what is searched around it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recsys_emb.config import GivenBudget, RunConfig, load_config, parse_config
from recsys_emb.data.store import EncodedDataset, open_dataset
from recsys_emb.errors import BudgetTooSmall, UserError
from recsys_emb.files import read_yaml
from recsys_emb.search.space import Keys, Space, Values, parse_space
from recsys_emb.sizes import budget_bytes
from recsys_emb.training.run import group_of, plan
from recsys_emb.training.task import Task, task_of
from recsys_emb.validation import explain

BaselineName = Literal["full", "uniform", "mixed_dim", "uniform_widths"]


class SearchConfig(BaseModel):
    """One search as its YAML file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: Path = Field(description="the YAML file of a run, relative to this one")
    set: tuple[str, ...] = Field((), description="KEY=VALUE texts that change the base, as --set does")
    space: dict[str, Any] = Field(description="distributions at config paths (space.py)")
    mode: Literal["budget", "pareto"] = Field(
        "budget", description="budget: the best AUC within the bytes; pareto: AUC against bytes"
    )
    budget: GivenBudget = Field(
        None, description="a ratio to the base's full tables such as 0.1, or bytes such as 20MB; --budget goes before"
    )
    sampler: Literal["tpe", "random", "nsga2"] = "tpe"
    pruner: Literal["none", "median", "halving"] = Field(
        "none", description="what ends a trial early, judged at every evaluation (training.eval_every)"
    )
    baselines: tuple[BaselineName, ...] = Field(
        ("full", "uniform", "mixed_dim", "uniform_widths"), description="trained first, to compare with (baselines.py)"
    )
    scoring: Literal["train", "supernet"] = Field(
        "train", description="supernet: trials are scored on one network of nested widths, the best are trained"
    )
    retrain: int = Field(5, ge=1, description="how many of the best scored trials are trained from scratch")
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

    @model_validator(mode="after")
    def _fits_together(self) -> SearchConfig:
        if self.pruner != "none" and (self.mode == "pareto" or self.scoring == "supernet"):
            what = "mode: pareto" if self.mode == "pareto" else "scoring: supernet"
            raise ValueError(f"pruner: {self.pruner} does not go with {what}; allowed: none")
        return self


@dataclass(frozen=True)
class Search:
    """A search whose every part is known to fit: the file, the base run, its dataset's space, the budget in bytes."""

    config: SearchConfig
    base: RunConfig
    space: Space
    full_bytes: int
    budget: int | None

    def run_config(self, values: Values) -> RunConfig:
        """The base run with the values in their places, under the search's budget. Raises UserError in one line."""
        tree = self.tree()
        if self.budget is not None:
            _put(tree, ("embedding", "budget"), self.budget)
        for path, value in values.items():
            _put(tree, path, value)
        return parse_config(tree, source="trial")

    def with_settings(self, config: Mapping[str, Any]) -> Search:
        """The search around a base that has what one of its trials, as a JSON config, found beside the embedding."""
        tree = self.tree()
        for path, value in self.space.values_of(config).items():
            if path[0] != "embedding":
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
        return open_dataset(self.base.data.path)

    @property
    def identity(self) -> dict[str, Any]:
        """What must be equal for two commands to work on one study."""
        own = self.config.model_dump(mode="json", exclude={"base", "set", "budget"})
        run = self.base.model_dump(mode="json", exclude={"data"})
        return {**own, "budget_bytes": self.budget, "base": run, "dataset": self.dataset.fingerprint}


def load_search(path: Path, overrides: Sequence[str] = (), budget: str | None = None) -> Search:
    """Reads a search and checks all of it: the base, every path of the space, every value of every distribution.

    Args:
        path: its YAML file.
        overrides: KEY=VALUE texts for the base, after those of the file.
        budget: goes before the file's.

    Raises:
        UserError: a mistake in any of these, in one line.
    """
    keys = f"the keys {', '.join(SearchConfig.model_fields)}"
    raw = read_yaml(path, "search", keys)
    if budget is not None:
        raw["budget"] = budget
    try:
        config = SearchConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"search {path}: {explain(error, SearchConfig)}") from None
    base_path = path.parent / config.base
    if {"base", "space"} <= read_yaml(base_path, f"search {path}: base", "those of a run").keys():
        raise UserError(f"search {path}: base: {base_path} is a search itself; name the YAML file of a run")
    base = load_config(base_path, [*config.set, *overrides])
    spec = group_of(base, open_dataset(base.data.path).schema)
    space = parse_space(config.space, {t.name: t.num_embeddings for t in spec.tables}, f"search {path}: space")
    search = Search(config, base, space, spec.full_bytes, budget_bytes(config.budget, spec.full_bytes))
    _check(search, f"search {path}")
    return search


def _check(search: Search, where: str) -> None:
    """Raises UserError when a config cannot hold what the space may draw for it."""
    for param, values in search.space.probes():
        if param.paths[0][0] == "data":
            raise UserError(f"{where}: space.{param.name}: trials are compared on one dataset; search other keys")
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
    return config.model_copy(update={"embedding": config.embedding.model_copy(update={"budget": None})})


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
