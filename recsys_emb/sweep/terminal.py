"""What a sweep says in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from recsys_emb.sizes import human_bytes
from recsys_emb.sweep.results import Row, by_method, settings_of
from recsys_emb.sweep.tables import budget_name, budgets_of, method_name, out_of_reach


def quiet(seed: int, row: Row) -> None:
    """Says nothing of a figure."""


def tell(seed: int, row: Row) -> None:
    """One line on a figure, on stderr."""
    found = row.get("error") or f"test AUC {row['auc']:.5f}, {human_bytes(row['serving_bytes'])}"
    settings = settings_of(row).in_words()
    with_settings = "" if settings == "default" else f" ({settings})"
    print(f"seed {seed}: {row['method']} at {budget_name(row['budget'])}{with_settings}: {found}", file=sys.stderr)


def points_table(rows: Sequence[Row], out: Path) -> None:
    """Mean AUC by method and budget, and where the rest is."""
    budgets = [None, *budgets_of(rows)]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Test AUC, mean ± spread over seeds")
    table.show_edge = table.pad_edge = False
    table.add_column("Method")
    for budget in budgets:
        table.add_column(budget_name(budget), justify="right")
    for at in by_method(rows).values():
        table.add_row(method_name(at), *(_cell(at.get(budget)) for budget in budgets))
    Console().print(table)
    print(f"{out}/report.html, sweep.md, sweep.csv, sweep.png: the same with sizes, settings and plots")


def _cell(row: Row | None) -> str:
    if row is None or row["auc"] is None:
        return out_of_reach(row).replace(" (", "\n(")
    return f"{row['auc']:.4f}" + (f"\n± {row['auc_std']:.4f}" if row["auc_std"] is not None else "")
