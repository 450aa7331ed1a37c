"""Takes away the columns of a scored candidate that its score does not miss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optuna.distributions import IntDistribution

from recsys_emb.search.space import Param, Space

Widths = dict[str, int]
"""Columns by the name of a parameter; tables that share one are narrowed together."""


def narrowed(space: Space, widths: Widths, score: Callable[[Mapping[str, int]], float], loss: float) -> Widths:
    """Each table in turn, from the widest on, at the least width that keeps the score within ``loss`` of what it was.

    A sampler that looks for the best score leaves a field of no use at any width that it drew: none is better.

    Args:
        space: of widths alone.
        widths: the candidate's.
        score: of columns by table.
        loss: of score, for each parameter.
    """
    best = score(by_table(space, widths))
    for param in sorted(space.params, key=lambda p: -widths[p.name]):
        for width in _below(param, widths[param.name]):
            tried = widths | {param.name: width}
            found = score(by_table(space, tried))
            if found >= best - loss:
                widths, best = tried, found
                break
    return widths


def by_table(space: Space, widths: Mapping[str, int]) -> dict[str, int]:
    """Columns by table."""
    return {path[-1]: widths[param.name] for param in space.params for path in param.paths}


def _below(param: Param, width: int) -> list[int]:
    """Widths that the parameter may have below this one, the least first."""
    d = param.distribution
    allowed = range(d.low, d.high + 1, d.step) if isinstance(d, IntDistribution) else param.choices
    return sorted(w for w in allowed if w < width)
