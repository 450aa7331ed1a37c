"""Figures at a terminal say what they cover."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from recsys_emb.report.terminal import gauc_coverage, metrics_table

FIGURES = {
    **{"split": "test", "auc": 0.8, "logloss": 0.4, "ne": 0.7, "calibration": 1.0, "gauc": 0.75},
    **{"gauc_users": 29, "users": 60, "gauc_rows": 1234, "rows": 2000},
}


def text(table: Table) -> str:
    console = Console(width=120)
    with console.capture() as shown:
        console.print(table)
    return shown.get()


def test_gauc_says_of_how_many_users_and_rows_it_is() -> None:
    said = "29 of 60 users, 1,234 of 2,000 rows"
    assert said in text(metrics_table(FIGURES, Path("run")))
    assert gauc_coverage(FIGURES) == f"{said} (users with clicks and non-clicks)"
    without = FIGURES | dict.fromkeys(("gauc", "gauc_users", "gauc_rows", "users"))
    assert "users" not in text(metrics_table(without, Path("run")))
    assert gauc_coverage({"gauc": 0.75, "rows": 2000}) is None  # of a report from before
