"""The rows of a comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recsys_emb.report.columns import BY_KEY, Column, shown
from recsys_emb.report.differences import names, notes
from recsys_emb.report.runs import Report

_COLUMNS = (
    *("auc", "auc_error", "auc_change", "auc_change_error", "bayes_gap", "serving_bytes", "ratio"),
    *("served_bytes", "training_bytes", "peak_rss_bytes", "samples_per_second"),
)
_DISPENSABLE = (
    *("peak_rss_bytes", "training_bytes", "samples_per_second", "bayes_gap"),
    *("served_bytes", "ratio", "auc_error"),
)
"""What is left out, in this order, where the names of the runs would not fit on one line beside it."""


def compare_table(rows: Sequence[Report], width: int = 80) -> Table:
    """AUC, sizes, speed of the rows of ``compare``, as much as fits with every name on one line.

    Args:
        rows: at least one.
        width: columns of the terminal.
    """
    columns = shown((BY_KEY[key] for key in _COLUMNS), rows)
    left_out: list[Column] = []
    for key in _DISPENSABLE:
        if _needed(rows, columns) <= width:
            break
        left_out += [column for column in columns if column.key == key]
        columns = [column for column in columns if column.key != key]
    table = _table(rows, columns)
    # Text, not str: names are shown as they are, not read as markup
    table.title = Text(f"{subject(rows)}, test split")
    table.caption = Text(" ".join(filter(None, (datasets_note(rows), f"{counts(rows)}.", _left_out(left_out)))))
    return table


def _needed(rows: Sequence[Report], columns: Sequence[Column]) -> int:
    """Columns of a terminal in which no name, no figure and no single setting is broken."""
    return Console(width=1000).measure(_table(rows, columns)).minimum


def _table(rows: Sequence[Report], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.show_edge = table.pad_edge = False
    named = names(rows)
    table.add_column("Run", min_width=max(map(len, named)), overflow="fold")
    for column in columns:
        table.add_column(column.title.replace(" ", "\n").replace("/", "\n/"), justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    several = len(datasets(rows)) > 1
    for row, name, below in zip(rows, named, [*rows[1:], None]):
        told = Text(name)
        if small := ", ".join(filter(None, (str(row["dataset"]) if several else "", notes(row)))):
            told.append(f"\n{small}", style="dim")
        figures = ["\n".join(filter(None, (c.text(row), c.spread(row) if c.key == "auc" else ""))) for c in columns]
        ends = below is not None and below["dataset"] != row["dataset"]
        table.add_row(told, *figures, str(row["n"]), end_section=ends)
    return table


def _left_out(columns: Sequence[Column]) -> str:
    named = ", ".join(column.title for column in columns)
    return f"Not shown in this width: {named}." if columns else ""


def subject(rows: Sequence[Report]) -> str:
    """``"deepfm on movielens-1m"``: what all rows have in common of model and dataset."""
    models = {str(row["model"]) for row in rows}
    named = datasets(rows)
    return " on ".join(([*models] if len(models) == 1 else []) + (named if len(named) == 1 else [])) or "Runs"


def counts(rows: Sequence[Report]) -> str:
    """``"6 runs in 2 rows; mean ± sample standard deviation over seeds"``."""
    runs = sum(row["n"] for row in rows)
    text = f"{runs} run{'s' * (runs > 1)}"
    if runs > len(rows):
        text += f" in {len(rows)} row{'s' * (len(rows) > 1)}; mean ± sample standard deviation over seeds"
    return text


def datasets_note(rows: Sequence[Report]) -> str:
    """A sentence where figures of different datasets stand in one table."""
    named = datasets(rows)
    if len(named) == 1:
        return ""
    return f"Runs of {len(named)} datasets ({', '.join(named)}): compare figures within a dataset only."


def datasets(rows: Sequence[Report]) -> list[str]:
    """Their names, each once."""
    return list(dict.fromkeys(str(row["dataset"]) for row in rows))
