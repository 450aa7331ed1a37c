"""Permutation importance of fields: a table for a terminal, and a page with a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from rich.table import Table

from recsys_emb.files import write_text
from recsys_emb.report import html
from recsys_emb.report.figure import INK, finish, new_axes, plain, shortened, styled, svg
from recsys_emb.report.intervals import Z95
from recsys_emb.sizes import MB, human_bytes

NOTE = (
    "What AUC is lost, and logloss gained, when a field's values change rows, with a 95 % interval over other rows and "
    "other permutations. Of two fields that tell the same, either may seem to be worth little."
)
HEADERS = ("field", "AUC lost", "± (95 %)", "logloss gained", "bytes", "AUC lost a MB")


def importance_table(figures: Mapping[str, Any], what: Path) -> Table:
    """The figures of ``importance``, field by field."""
    table = Table(title=_title(figures, what), title_justify="left")
    for header in HEADERS:
        table.add_column(header, justify="left" if header == "field" else "right")
    for row in figures["fields"]:
        table.add_row(*_cells(row))
    return table


def importance_page(figures: Mapping[str, Any], what: Path, out: Path) -> Path:
    """Writes a page to ``out``."""
    values = ("auc_lost", "stderr", "logloss_gained", "bytes", "auc_per_byte")
    rows = [
        [html.Cell(field, _with(row)), *(html.Cell(text, value=row[key]) for text, key in zip(texts, values))]
        for row in figures["fields"]
        for field, *texts in [_cells(row)]
    ]
    headers = [html.Header(title, number=title != "field") for title in HEADERS]
    drawn = svg(importance_plot(figures), "AUC lost by field, 95 % intervals.")
    page = html.page(
        "What fields are worth",
        _title(figures, what),
        html.section("Fields", drawn, html.table(headers, rows), note=NOTE),
    )
    write_text(out, page)
    return out


def importance_plot(figures: Mapping[str, Any]) -> Axes:
    """A bar for each field, the most important on top."""
    rows = figures["fields"]
    (ax,) = new_axes(height=0.9 + 0.18 * len(rows))
    with styled():
        at = range(len(rows))
        reach = [Z95 * r["stderr"] for r in rows]
        ax.barh(at, [r["auc_lost"] for r in rows], xerr=reach, color="#4477aa", ecolor=INK, height=0.7)
        ax.set_yticks(at, [plain(shortened(r["field"])) for r in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel("AUC lost")
    return finish(ax)


def _title(figures: Mapping[str, Any], what: Path) -> str:
    return (
        f"{what} on {figures['rows']:,} rows of {figures['split']}: AUC {figures['auc']:.5f}, logloss "
        f"{figures['logloss']:.5f}; {figures['permutations']} permutations of each field"
    )


def _with(row: Mapping[str, Any]) -> str:
    return f"bytes shared with {', '.join(row['shares_table_with'])}" if row["shares_table_with"] else ""


def _cells(row: Mapping[str, Any]) -> list[str]:
    per = row["auc_per_byte"]
    return [
        row["field"],
        f"{row['auc_lost']:.5f}",
        f"{Z95 * row['stderr']:.5f}",
        f"{row['logloss_gained']:.5f}",
        "-" if row["bytes"] is None else human_bytes(row["bytes"]),
        "-" if per is None else f"{per * MB:.5f}",
    ]
