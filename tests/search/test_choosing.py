"""Choosing a winner, the front and its hypervolume, the rank correlation: against hand-made trials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recsys_emb.errors import UserError
from recsys_emb.search.choosing import choose, correlation, front, hypervolume
from recsys_emb.search.finished import Finished, write_parquet
from recsys_emb.training.main_metric import MainMetric
from recsys_emb.training.task import TASKS, ClickThrough
from tests.search.conftest import RATE, MakeSearch

MAIN = ClickThrough.main


def trial(number: int, auc: float | None, size: int, state: str = "complete", **more: Any) -> Finished:
    row = {"number": number, "auc": auc, "serving_bytes": size, "state": state, "pareto": False, "message": "why"}
    name, config = more.get("enqueued") or f"trial {number}", object() if state == "complete" else None
    return Finished(name, {"enqueued": None, "score": None, **row, **more}, config)  # type: ignore[arg-type]


TRIALS = [(0, 0.7, 400), (1, 0.6, 100), (2, 0.65, 300), (3, 0.699, 200), (4, 0.7, 500)]


def test_the_front_is_what_nothing_beats(make_search: MakeSearch) -> None:
    trials = [trial(*t) for t in TRIALS]
    trials.append(trial(5, 0.9, 10, "pruned"))
    best = front(trials, MAIN)
    assert [t.row["number"] for t in best] == [1, 3, 0]  # smallest first
    search = make_search(space=RATE)
    full = search.full_bytes
    # The corner is AUC 0.5 at the full bytes; strips between the sizes of the front, each as high as its best AUC.
    strips = 0.1 * (200 - 100) / full + 0.199 * (400 - 200) / full + 0.2 * (full - 400) / full
    assert hypervolume(best, search) == pytest.approx(strips)
    assert hypervolume([], search) == 0
    assert hypervolume([trial(0, 0.4, 10)], search) == 0  # beyond the corner


def test_the_winner_has_the_best_auc_or_the_smallest_table_near_it(make_search: MakeSearch) -> None:
    trials = [trial(*t) for t in TRIALS]
    assert choose(make_search(space=RATE), trials).row["number"] == 0  # as good as 4, and smaller
    assert choose(make_search(space=RATE, mode="pareto", tolerance=0.001), trials).row["number"] == 3
    assert choose(make_search(space=RATE, mode="pareto", tolerance=0.0), trials).row["number"] == 0


def test_no_winner_says_why(make_search: MakeSearch) -> None:
    search = make_search(space=RATE, budget="1KB")
    infeasible = [trial(i, None, size, "infeasible") for i, size in enumerate([3000, 2000])]
    infeasible.append(trial(2, None, 1500, "infeasible", enqueued="mixed_dim"))
    with pytest.raises(
        UserError, match="none of 3 candidates fits in 1,000 bytes; the smallest that was drawn takes 2,0"
    ):
        choose(search, infeasible)
    with pytest.raises(UserError, match="no trial is complete; the first that failed: why"):
        choose(search, [trial(0, None, 3000, "infeasible"), trial(1, None, 900, "failed")])


def test_a_correlation_that_does_not_support_the_search_says_so() -> None:
    pairs = [(0.61, 0.70), (0.62, 0.72), (0.63, 0.71), (0.64, 0.73)]
    found = correlation([trial(i, auc, 1, score=score) for i, (score, auc) in enumerate(pairs)], MAIN)
    # One swapped neighbour: 1 - 6 * (1 + 1) / (4 * 15)
    assert found == {"spearman": pytest.approx(0.8), "n": 4, "supported": True}
    reverse = correlation([trial(i, -auc, 1, score=score) for i, (score, auc) in enumerate(pairs)], MAIN)
    assert reverse is not None
    assert not reverse["supported"]
    assert correlation([trial(0, 0.7, 1, score=0.6), trial(1, 0.7, 1), trial(2, 0.7, 1)], MAIN) is None


def test_choices_of_several_kinds_share_a_column(tmp_path: Path) -> None:
    rows = [trial(0, 0.7, 1, **{"param:a": 1}), trial(1, 0.7, 1, **{"param:a": "x"}), trial(2, 0.7, 1)]
    write_parquet(rows, tmp_path / "t.parquet", MAIN)
    assert pl.read_parquet(tmp_path / "t.parquet")["param:a"].to_list() == ["1", "x", None]


def test_of_a_metric_that_is_better_when_less_the_least_wins(make_search: MakeSearch, monkeypatch: Any) -> None:
    class LoglossTask(ClickThrough):
        main = MainMetric("logloss", "logloss", chance=0.7, maximize=False)

    monkeypatch.setitem(TASKS, "ctr", LoglossTask())
    trials = [trial(i, None, size, logloss=loss) for i, loss, size in ((0, 0.4, 300), (1, 0.3, 400), (2, 0.301, 200))]
    search = make_search(space=RATE, mode="pareto", tolerance=0.01)
    assert choose(search, trials).row["number"] == 2
    assert choose(make_search(space=RATE), trials).row["number"] == 1
    best = front(trials, LoglossTask.main)
    assert [t.row["number"] for t in best] == [2, 1]
    full = search.full_bytes  # strips above each size of the front, as high as its best is below 0.7
    strips = (0.7 - 0.301) * (400 - 200) / full + (0.7 - 0.3) * (full - 400) / full
    assert hypervolume(best, search) == pytest.approx(strips)
