"""Leaves out the fields of a scored candidate that its score does not miss."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from optuna.distributions import IntDistribution

from recsys_emb.search.space import Param, Space
from recsys_emb.training.metrics import Predictions
from recsys_emb.training.task import Task

Widths = dict[str, int]
"""Columns by the name of a parameter; tables that share one are narrowed together."""
CHANCE = 2.5
"""Standard errors: a sampler picks, on the rows that judge it, those fields of no use that happen to help."""


def narrowed(
    space: Space, widths: Widths, predict: Callable[[Mapping[str, int]], Predictions], task: Task, most: float
) -> Widths:
    """Each table at 0 columns (at 1 in a space without 0) where the score then falls by no more than by chance.

    A sampler that looks for the best score leaves a field of no use at any width that it drew: none is better. Fields
    of use keep their widths: between those a supernet, trained for all at once, tells too little. (MovieLens-1M: a
    candidate whose item ids went from 8 columns to the 2 that its score asked for ended 0.004 of AUC lower.)

    Backward elimination, the least missed first: what little a field of use adds is then judged with the others there.
    Each step is judged against the one before and against ``widths``, or many fields of little use would go one by one,
    and with them what they add together.

    Args:
        space: of widths alone.
        widths: the candidate's.
        predict: of columns by table.
        task: says by how much its main metric differs.
        most: of the metric that a parameter, and all together, may cost even where few rows could not tell that from
            chance.
    """
    full = last = predict(by_table(space, widths))

    def loss(before: Predictions, after: Predictions) -> tuple[float, float]:
        change, error = task.change(before, after)
        return -task.main.score(change), error

    def bearable(before: Predictions, after: Predictions) -> bool:
        lost, error = loss(before, after)
        return lost <= min(most, CHANCE * error)

    least = {p.name: _least(p) for p in space.params if _least(p) < min(2, widths[p.name])}
    alone = {name: predict(by_table(space, widths | {name: width})) for name, width in least.items()}
    for name in sorted(least, key=lambda name: loss(full, alone[name])[0]):
        tried = widths | {name: least[name]}
        found = alone[name] if last is full else predict(by_table(space, tried))
        if bearable(last, found) and bearable(full, found):
            widths, last = tried, found
    return widths


def by_table(space: Space, widths: Mapping[str, int]) -> dict[str, int]:
    """Columns by table."""
    return {path[-1]: widths[param.name] for param in space.params for path in param.paths}


def _least(param: Param) -> int:
    """The fewest columns that the parameter may have."""
    d = param.distribution
    return d.low if isinstance(d, IntDistribution) else min(param.choices)
