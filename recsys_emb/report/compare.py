"""Compares runs: rows for a program, a table for the terminal, a plot and a page for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from recsys_emb.errors import UserError
from recsys_emb.files import write_text
from recsys_emb.report import html
from recsys_emb.report.columns import label, shown
from recsys_emb.report.runs import Report, group_by_seed, load_reports

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES_NOTE = (
    "Serving is all that the embeddings need when served. Training is parameters, buffers and optimizer state while "
    "training. Peak RSS is the most memory that the training process held, data included. 1 MB is 1,000,000 bytes."
)
_TERMINAL = (
    *("auc", "bayes_gap"),
    *("serving_bytes", "ratio", "training_bytes", "peak_rss_bytes"),
    "samples_per_second",
)


def compare(runs: Sequence[str | Path], out: str | Path | None = None) -> list[Report]:
    """Reads finished runs and groups those that differ by seed alone.

    Args:
        runs: run folders; one is enough, and a folder given twice counts once.
        out: an ``.html`` file to write, with the plot beside it as ``.png``.

    Returns:
        The rows of ``group_by_seed``.

    Raises:
        UserError: a folder that is no finished run, or an ``out`` that cannot be written.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {path}: expected the name of an .html file; the plot goes beside it as .png")
    rows = group_by_seed(load_reports(runs))
    if path is not None:
        from recsys_emb.report.figure import png, svg  # matplotlib takes a while to import

        ax = _memory_auc_by_dataset(rows)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, _page(rows, svg(ax, "Test AUC against serving size")))
            path.with_suffix(".png").write_bytes(png(ax))
        except OSError as error:
            raise UserError(f"--out {path}: cannot write ({error.strerror}); choose another file") from None
    return rows


def terminal_table(rows: Sequence[Report]) -> Table:
    """The rows of ``compare`` as a rich table: AUC, the three sizes, speed; all fits 80 columns."""
    columns = [column for column in shown(rows) if column.key in _TERMINAL]
    several = len(_datasets(rows)) > 1
    # Text, not str: names are shown as they are, not read as markup
    title = Text("Test split" if several else f"{rows[0]['dataset']}, test split")
    caption = Text(" ".join(filter(None, (_datasets_note(rows), f"{_runs_text(rows)}."))))
    table = Table(title=title, caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.show_edge = table.pad_edge = False
    table.add_column("Run", min_width=10, overflow="fold")
    for column in columns:
        table.add_column(column.title.replace(" ", "\n").replace("/", "\n/"), justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    for row, below in zip(rows, [*rows[1:], None]):
        name = Text(label(row))
        notes = ", ".join(filter(None, (str(row["dataset"]) if several else "", row["settings"])))
        if notes:
            name.append(f"\n{notes}", style="dim")
        figures = [c.text(row) + (f"\n{c.spread(row)}" if c.key == "auc" else "") for c in columns]
        ends = below is not None and below["dataset"] != row["dataset"]
        table.add_row(name, *figures, str(row["n"]), end_section=ends)
    return table


def _memory_auc_by_dataset(rows: Sequence[Report]) -> Axes:
    from recsys_emb.report import plots
    from recsys_emb.report.figure import new_axes

    datasets = _datasets(rows)
    series = max(len({label(row) for row in rows if row["dataset"] == dataset}) for dataset in datasets)
    axes = new_axes(len(datasets), height=plots.memory_auc_height(series) * len(datasets))
    for ax, dataset in zip(axes, datasets):
        plots.memory_auc([row for row in rows if row["dataset"] == dataset], ax)
        if len(datasets) > 1:
            ax.set_title(dataset, fontsize=10, parse_math=False)
    return axes[0]


def _page(rows: Sequence[Report], svg: str) -> str:
    columns, datasets = shown(rows), _datasets(rows)
    several = len(datasets) > 1
    headers = [
        html.Header("Run", "model / embedding backend, and the settings that tell rows apart", number=False),
        *([html.Header("Dataset", number=False)] if several else []),
        *(html.Header(column.title, column.meaning) for column in columns),
        html.Header("Seeds", "number of runs that differ by seed alone"),
    ]
    cells = [
        [
            html.Cell(label(row), row["settings"]),
            *([html.Cell(str(row["dataset"]))] if several else []),
            *(html.Cell(column.text(row), column.spread(row), row.get(column.key)) for column in columns),
            html.Cell(str(row["n"]), value=row["n"]),
        ]
        for row in rows
    ]
    folders = [[html.Cell(label(row), row["settings"]), html.Cell(", ".join(row["runs"]))] for row in rows]
    caption = "Test AUC against the size of the embeddings when served. Bars are one standard deviation over seeds."
    return html.page(
        "Embedding memory and AUC",
        f"{', '.join(datasets)}: {_runs_text(rows)}. {_datasets_note(rows)}",
        html.section("Memory and AUC", html.figure(svg, caption)),
        html.section("Runs", html.table(headers, cells), note=f"Test split. {SIZES_NOTE}"),
        html.section("Folders", html.table([headers[0], html.Header("Run folders", number=False)], folders)),
    )


def _runs_text(rows: Sequence[Report]) -> str:
    runs = sum(row["n"] for row in rows)
    text = f"{runs} run{'s' * (runs > 1)}"
    if runs > len(rows):
        text += f" in {len(rows)} row{'s' * (len(rows) > 1)}; mean ± sample standard deviation over seeds"
    return text


def _datasets_note(rows: Sequence[Report]) -> str:
    """A sentence where figures of different datasets stand in one table."""
    datasets = _datasets(rows)
    if len(datasets) == 1:
        return ""
    return f"Runs of {len(datasets)} datasets ({', '.join(datasets)}): compare figures within a dataset only."


def _datasets(rows: Sequence[Report]) -> list[str]:
    return list(dict.fromkeys(str(row["dataset"]) for row in rows))
