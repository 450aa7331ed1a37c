"""The metric by which runs are picked and ranked, by task; without torch, for reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class MainMetric:
    """The metric that picks checkpoints, trials and winners.

    Attributes:
        key: among the task's metrics, and in reports.
        title: as people write it.
        chance: its value without any knowledge.
        maximize: more of it is better.
    """

    key: str
    title: str
    chance: float
    maximize: bool = True

    def of(self, figures: Mapping[str, Any]) -> float:
        """Its value among a split's metrics, or in a report."""
        return float(figures[self.key])

    def score(self, value: float) -> float:
        """The value with its sign turned where less is better, so that more always is."""
        return value if self.maximize else -value


DEFAULT_TASK: Final = "ctr"
MAIN_METRICS: Final[Mapping[str, MainMetric]] = {DEFAULT_TASK: MainMetric("auc", "AUC", chance=0.5)}
"""By the config's ``task``."""


def main_metric_in(tree: Mapping[str, Any]) -> MainMetric:
    """That of the task that a report, or a config as JSON, names; of ``ctr`` where it names none."""
    return MAIN_METRICS[tree.get("task", DEFAULT_TASK)]
