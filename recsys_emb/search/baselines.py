"""What a search must beat: known settings that are trained before the first trial is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.errors import UserError
from recsys_emb.search.config import BaselineName, Search
from recsys_emb.search.objective import Infeasible, planned_bytes


def baselines(search: Search) -> dict[BaselineName, RunConfig]:
    """The runs by name.

    full: the uncompressed tables. uniform: the same at the largest ``model.embedding_dim`` within the budget, a quarter
    of the base's without one. mixed_dim: widths by the rule of the backend of that name. uniform_widths: of spaces of
    widths alone, the point at which all tables have the same largest width within the budget.
    """
    return {name: config for name in search.config.baselines for config in _BUILDERS[name](search)}


def tuned(search: Search, trial: Mapping[str, Any]) -> dict[BaselineName, RunConfig]:
    """The baselines with what a trial, as a JSON config, found beside the embedding: learning rate, layers and such.

    So a trial's lead over them is not that of its training. None where that changes nothing.
    """
    before, after = baselines(search), baselines(search.with_settings(trial))
    return {name: config for name, config in after.items() if config != before.get(name)}


def _full(search: Search) -> Iterator[RunConfig]:
    yield _with(search, "full")


def _uniform(search: Search) -> Iterator[RunConfig]:
    dim = search.base.model.embedding_dim
    if search.budget is None:
        yield _with(search, "full", max(1, dim // 4))
        return
    narrower = (_with(search, "full", d) for d in range(dim - 1, 0, -1))
    fitting = (config for config in narrower if _fits(search, config))
    yield next(fitting, _with(search, "full", 1))  # one that is too large is recorded as such


def _mixed_dim(search: Search) -> Iterator[RunConfig]:
    yield _with(search, "mixed_dim")


def _uniform_widths(search: Search) -> Iterator[RunConfig]:
    if not search.space.widths:
        return
    shared = set.intersection(*({*p.choices} for p in search.space.params if not p.branches))
    points = [dict.fromkeys((path for p in search.space.params for path in p.paths), w) for w in sorted(shared)]
    configs = [search.run_config(point) for point, w in zip(points, sorted(shared)) if w]
    fitting = [config for config in configs if _fits(search, config)]
    yield from (fitting if search.budget is not None else configs)[-1:]


_BUILDERS = {"full": _full, "uniform": _uniform, "mixed_dim": _mixed_dim, "uniform_widths": _uniform_widths}


def _with(search: Search, backend: str, embedding_dim: int | None = None) -> RunConfig:
    tree = search.tree()
    own: dict[str, Any] = {"backend": backend, "budget": search.budget}
    tree["embedding"] = {k: v for k, v in tree.get("embedding", {}).items() if k == "init_std"} | own
    if embedding_dim is not None:
        tree["model"]["embedding_dim"] = embedding_dim
    return parse_config(tree, source="baseline")


def _fits(search: Search, config: RunConfig) -> bool:
    try:
        planned_bytes(search, config)
    except (Infeasible, UserError):
        return False
    return True
