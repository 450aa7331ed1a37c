"""What a search must beat: known settings that are trained before the first trial is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.embeddings.posttraining import posttraining_registry
from recsys_emb.errors import UserError
from recsys_emb.search.config import BASELINE_RULES, Search
from recsys_emb.search.objective import Infeasible, planned_bytes
from recsys_emb.search.space import Values


def baselines(search: Search) -> dict[str, RunConfig]:
    """The runs by name.

    full: the uncompressed tables. uniform: the same at the largest ``model.embedding_dim`` within the budget, a quarter
    of the base's without one. uniform_widths: of spaces of widths alone, the point at which all tables have the same
    largest width within the budget. The name of a backend: its own rule with its default options. The name of a
    post-training method: what it makes of the full tables, under the default options, and the base's fine-tuning.
    """
    return {name: config for name in search.config.baselines for config in _configs(search, name)}


def tuned(search: Search, values: Values) -> dict[str, RunConfig]:
    """The baselines with what a trial drew beside the embedding: learning rate, layers and such.

    So a trial's lead over them is not that of its training. Those that it leaves as they are, are left out.
    """
    before, after = baselines(search), baselines(search.with_settings(values))
    return {name: config for name, config in after.items() if config != before.get(name)}


def full_tables(search: Search) -> RunConfig:
    """The base on full tables."""
    return _with(search, "full", budget=False)


def _configs(search: Search, name: str) -> Iterator[RunConfig]:
    if name in _RULES:
        yield from _RULES[name](search)
    elif name in posttraining_registry.names():
        yield _compressed(search, name)
    else:
        yield _with(search, name)


def _full(search: Search) -> Iterator[RunConfig]:
    yield full_tables(search)


def _uniform(search: Search) -> Iterator[RunConfig]:
    dim = search.base.model.embedding_dim
    if search.budget is None:
        yield _with(search, "full", max(1, dim // 4))
        return
    narrower = (_with(search, "full", d) for d in range(dim - 1, 0, -1))
    fitting = (config for config in narrower if _fits(search, config))
    yield next(fitting, _with(search, "full", 1))  # one that is too large is recorded as such


def _uniform_widths(search: Search) -> Iterator[RunConfig]:
    if not search.space.widths:
        return
    shared = set.intersection(*({*p.choices} for p in search.space.params if not p.branches))
    points = [dict.fromkeys((path for p in search.space.params for path in p.paths), w) for w in sorted(shared)]
    configs = [search.run_config(point) for point, w in zip(points, sorted(shared)) if w]
    fitting = [config for config in configs if _fits(search, config)]
    yield from (fitting if search.budget is not None else configs)[-1:]


_RULES: Final[dict[str, Callable[[Search], Iterator[RunConfig]]]] = dict(
    zip(BASELINE_RULES, (_full, _uniform, _uniform_widths), strict=True)
)


def _with(search: Search, backend: str, embedding_dim: int | None = None, budget: bool = True) -> RunConfig:
    tree = search.tree()
    own: dict[str, Any] = {"backend": backend} | ({"budget": search.budget} if budget else {})
    tree["embedding"] = {k: v for k, v in tree.get("embedding", {}).items() if k == "init_std"} | own
    tree["compact"] = None
    if embedding_dim is not None:
        tree["model"]["embedding_dim"] = embedding_dim
    return parse_config(tree, source="baseline")


def _compressed(search: Search, method: str) -> RunConfig:
    made = search.base.compact
    tune = None if made is None or made.finetune is None else made.finetune.model_dump(mode="json")
    tree = full_tables(search).model_dump(mode="json")
    tree["compact"] = {"method": method, "budget": search.budget, "finetune": tune}
    return parse_config(tree, source="baseline")


def _fits(search: Search, config: RunConfig) -> bool:
    try:
        planned_bytes(search, config)
    except (Infeasible, UserError):
        return False
    return True
