"""The page of a comparison: what differs, AUC against memory and with intervals, every figure in two tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from recsys_emb.files import write_bytes, write_text
from recsys_emb.report import html, plots
from recsys_emb.report.columns import COST, QUALITY, SIZES_NOTE, Column, shown
from recsys_emb.report.compare_table import counts, datasets, datasets_note, subject
from recsys_emb.report.differences import differing, in_words, names, notes, settings_of, short_names, titles, written
from recsys_emb.report.figure import new_axes, png, svg
from recsys_emb.report.runs import Report
from recsys_emb.sizes import in_mb

_SETTING_COLUMNS = 6
"""More settings than these share one cell, so that the table fits a page."""


def write_compare_page(rows: Sequence[Report], path: Path, base: Report | None) -> None:
    """Writes the page, and the plot of AUC against memory beside it as PNG. OSError where it cannot."""
    ax = _by_dataset(rows, "serving_bytes")
    page = html.page(
        "Embedding memory and AUC",
        f"{subject(rows)}: {counts(rows)}. {datasets_note(rows)}",
        _differences(rows, path.parent),
        html.section("Memory and AUC", html.figures(_memory(ax), _served(rows), _intervals(rows, base))),
        html.section("Quality", _figures(QUALITY, rows), note=_quality_note(rows, base)),
        html.section("Size and speed", _figures(COST, rows), note=SIZES_NOTE),
    )
    write_text(path, page)
    write_bytes(path.with_suffix(".png"), png(ax))


# -- plots ------------------------------------------------------------------------------------------------------------


def _by_dataset(rows: Sequence[Report], size: str) -> Axes:
    named = datasets(rows)
    of = [[row for row in rows if row["dataset"] == dataset] for dataset in named]
    axes = new_axes(len(named), height=sum(map(plots.memory_auc_height, of)))
    for ax, dataset, members in zip(axes, named, of):
        plots.memory_auc(members, ax, size)
        if len(named) > 1:
            ax.set_title(dataset, fontsize=10, parse_math=False)
    return axes[0]


def _memory(ax: Axes) -> str:
    drawn = svg(ax, "Test AUC against serving size")
    joined = "Lines join the budgets of one method; bars are one standard deviation over seeds."
    return html.figure(drawn, f"Test AUC against the size of the embeddings when served. {joined}")


def _served(rows: Sequence[Report]) -> str:
    """The same with vocabularies and network, where every row says how large they are."""
    if any(row["served_bytes"] is None for row in rows):
        return ""
    drawn = svg(_by_dataset(rows, "served_bytes"), "Test AUC against the size of all that is served")
    return html.figure(drawn, "The same with what an artifact holds beside embeddings: vocabularies and the network.")


def _intervals(rows: Sequence[Report], base: Report | None) -> str:
    what = "Test AUC" if base is None else f"Difference of test AUC to {base['run']}"
    drawn = svg(plots.auc_intervals(rows, change=base is not None), what)
    return html.figure(drawn, f"{what}; bars are 95 % intervals, where they are known.")


# -- tables -----------------------------------------------------------------------------------------------------------


def _differences(rows: Sequence[Report], folder: Path) -> str:
    keys = differing(rows)
    apart = len(keys) <= _SETTING_COLUMNS
    budgets = any(row["budget_bytes"] is not None for row in rows)
    headers = [
        _RUN,
        *([html.Header("Budget (MB)", "what the embeddings were allowed to take")] if budgets else []),
        *([html.Header(name, key, number=False) for key, name in short_names(keys).items()] if apart else []),
        *([html.Header("Settings", number=False)] if keys and not apart else []),
        html.Header("Pages", "of each run; one per seed", number=False),
    ]
    cells = [
        [
            html.Cell(name),
            *([_budget(row)] if budgets else []),
            *([html.Cell(_setting(row, key)) for key in keys] if apart else []),
            *([html.Cell(in_words(row, keys))] if keys and not apart else []),
            html.Cell("", links=[(run, _page_of(folder, path)) for run, path in zip(row["runs"], row["paths"])]),
        ]
        for name, row in zip(names(rows) if keys else titles(rows), rows)
    ]
    note = "All else in their configs is the same, seeds and the options of other methods aside."
    return html.section("What differs", html.table(headers, cells), note=note if len(rows) > 1 else "")


def _budget(row: Report) -> html.Cell:
    size = row["budget_bytes"]
    return html.Cell("–") if size is None else html.Cell(in_mb(size), value=size)


def _setting(row: Report, key: str) -> str:
    settings = settings_of(row)
    return written(settings[key]) if key in settings else "–"


def _page_of(folder: Path, run: str) -> str | None:
    """Where a run's page is from the folder of this one; None where it has none."""
    page = Path(run) / "report.html"
    return os.path.relpath(page, folder) if page.is_file() else None


def _figures(columns: Sequence[Column], rows: Sequence[Report]) -> str:
    columns, several = shown(columns, rows), len(datasets(rows)) > 1
    headers = [
        _RUN,
        *([html.Header("Dataset", number=False)] if several else []),
        *(html.Header(column.title, column.meaning) for column in columns),
        html.Header("Seeds", "number of runs that differ by seed alone"),
    ]
    cells: list[list[Any]] = [
        [
            html.Cell(name, notes(row)),
            *([html.Cell(str(row["dataset"]))] if several else []),
            *(html.Cell(column.text(row), column.spread(row), row.get(column.key)) for column in columns),
            html.Cell(str(row["n"]), value=row["n"]),
        ]
        for name, row in zip(names(rows), rows)
    ]
    return html.table(headers, cells)


def _quality_note(rows: Sequence[Report], base: Report | None) -> str:
    told = "Test split."
    if any(row["auc_error"] is not None for row in rows):
        told += " The interval of an AUC says how far other test rows, and other seeds, would move it (DeLong)."
    if base is not None:
        told += (
            f" Differences are to {base['run']}, seed by seed; their intervals are narrower than those of the AUCs, "
            "since both runs saw the same rows. One whose interval reaches across 0 may be chance."
        )
    return told


_RUN = html.Header("Run", "embedding backend, with the model where several are compared", number=False)
