"""Plots of runs, each a function that draws on matplotlib axes and returns them.

Without ``ax`` a new figure is made that no global state knows (``ax.figure``); pass axes of ``plt.subplots()`` to draw
into a notebook's figure.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from recsys_emb.report.differences import titles
from recsys_emb.report.figure import (
    COLOURS,
    DASHES,
    INK,
    MARKERS,
    auc_axes,
    finish,
    height_with_legend,
    legend_below,
    log_axis,
    megabytes,
    new_axes,
    plain,
    shortened,
    styled,
)
from recsys_emb.report.frames import Rows, records
from recsys_emb.report.intervals import Z95, half_width
from recsys_emb.report.quality import Bin
from recsys_emb.sizes import MB, human_bytes

_SIZES = {
    "serving_bytes": "Serving size of the embeddings",
    "served_bytes": "Size of embeddings, vocabularies and network",
}
"""What the sizes of a run are called on an axis."""
SHOWN_TABLES = 40
"""Tables in the plot of bytes; the smallest others are one bar."""
SHOWN_RUNS = 40
"""Runs in the plot of intervals, the best first."""


def memory_auc(rows: Rows, ax: Axes | None = None, size: str = "serving_bytes") -> Axes:
    """Test AUC against size (MB, log axis), bars of one standard deviation over seeds.

    A line joins runs of one model, backend and settings that differ by their budgets. A backend with its settings has
    its own colour and marker, whatever the model; a model has its dashes and filling.

    Args:
        rows: of ``load_reports``, ``group_by_seed`` or ``runs_frame``; they should be of one dataset.
        ax: where to draw.
        size: ``serving_bytes`` of the embeddings, or ``served_bytes``: vocabularies and network, too.
    """
    rows = records(rows)
    series: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        series[str(row["model"]), _method(row)].append(row)
    with styled():
        ax = ax or new_axes(height=memory_auc_height(rows))[0]
        models = list(dict.fromkeys(str(row["model"]) for row in rows))
        methods = sorted({method for _, method in series})
        handles = {}
        for (model, method), members in sorted(series.items()):
            members = sorted(members, key=lambda row: row[size])
            own, other = methods.index(method), models.index(model)
            bars = ax.errorbar(
                [megabytes(row, size) for row in members],
                [row["auc"] for row in members],
                yerr=[row.get("auc_std") or math.nan for row in members],  # NaN draws no bar
                color=COLOURS[own % len(COLOURS)],
                marker=MARKERS[own % len(MARKERS)],
                linestyle=DASHES[other % len(DASHES)],
                fillstyle="full" if other % 2 == 0 else "none",
                markersize=6,
                linewidth=1.3,
                elinewidth=1,
                capsize=2.5,
            )
            handles[f"{model} / {method}" if len(models) > 1 else method] = bars.lines[0]
        sizes = [megabytes(row, size) for row in rows] or [1.0]
        log_axis(ax, sizes)
        ax.set_xlabel(f"{_SIZES[size]} (MB, log scale)")
        auc_axes(ax, y="Test AUC")
        if handles:
            legend_below(ax, list(handles.values()), list(handles))
        return finish(ax)


def memory_auc_height(rows: Rows) -> float:
    """Inches that ``memory_auc`` wants for these rows, whose methods its legend names."""
    series = sorted({(str(row["model"]), _method(row)) for row in records(rows)})
    return height_with_legend([" / ".join(names) for names in series])


def _method(row: Mapping[str, Any]) -> str:
    return ", ".join(filter(None, (str(row["backend"]), row.get("settings") or "")))


def auc_intervals(rows: Rows, change: bool = False, ax: Axes | None = None) -> Axes:
    """The test AUC of each row with its 95 % interval, in the order of the rows from the top; points without an error
    have no bar.

    Args:
        rows: of ``group_by_seed``.
        change: show the difference to the run that they are compared with, which is at 0.
        ax: where to draw.
    """
    rows = records(rows)[:SHOWN_RUNS]
    key = "auc_change" if change else "auc"
    with styled():
        ax = ax or new_axes(height=1.0 + 0.22 * len(rows))[0]
        places = range(len(rows), 0, -1)
        errors = [half_width(row.get(f"{key}_error")) for row in rows]
        ax.errorbar(
            [row.get(key) or 0.0 for row in rows],
            places,
            xerr=[math.nan if error is None else error for error in errors],  # NaN draws no bar
            color=COLOURS[0],
            linestyle="none",
            marker="o",
            markersize=5,
            elinewidth=1.4,
            capsize=2.5,
        )
        if change:
            ax.axvline(0, color=INK, linewidth=1, linestyle="--")
        ax.set_yticks(places, [plain(shortened(title)) for title in titles(rows)])
        ax.set_ylim(0.3, len(rows) + 0.7)
        auc_axes(ax, x="Difference of test AUC" if change else "Test AUC")
        finish(ax)
        ax.grid(False, axis="y")
        return ax


def learning_curves(events: Rows, axes: Sequence[Axes] | None = None, best_step: int | None = None) -> Sequence[Axes]:
    """Loss of training batches and of evaluations (first axes) and validation AUC (second) against the step.

    Args:
        events: of ``RunDir.metrics`` or ``events_frame``, the lines of ``metrics.jsonl``.
        axes: two axes.
        best_step: of the report: the evaluation of the last stage whose weights were kept is marked.
    """
    events = records(events)
    with styled():
        axes = axes if axes is not None else new_axes(2, height=4.6, sharex=True)
        losses, aucs = axes
        stages = list(dict.fromkeys(e.get("stage") for e in events))
        for i, stage in enumerate(stages):
            prefix = f"{stage}: " if len(stages) > 1 else ""
            dash = DASHES[i % len(DASHES)]
            train = [e for e in events if e.get("stage") == stage and e.get("event") == "train"]
            evals = [e for e in events if e.get("stage") == stage and e.get("event") == "eval"]
            _line(losses, train, "loss", plain(f"{prefix}training loss"), color=COLOURS[0], linestyle=dash)
            marked = {"linestyle": dash, "markersize": 4.5}
            _line(
                losses, evals, "logloss", plain(f"{prefix}validation logloss"), color=COLOURS[1], marker="s", **marked
            )
            _line(aucs, evals, "auc", plain(f"{prefix}validation AUC"), color=COLOURS[2], marker="^", **marked)
        kept = _kept(events, best_step)
        for event in kept:
            for ax in axes:
                ax.axvline(event["step"], color=INK, linewidth=1, linestyle=":")
            ring: dict[str, Any] = {"marker": "o", "markersize": 11, "fillstyle": "none", "linestyle": "none"}
            told = f"kept: epoch {event['epoch']:g}, step {event['step']:,}"
            aucs.plot([event["step"]], [event["auc"]], color=INK, label=told, **ring)
        losses.set_ylabel("Loss (nats)")
        aucs.set_ylabel("Validation AUC")
        aucs.set_xlabel("Step (batches)")
        if losses.get_lines():
            losses.legend(frameon=False)
        if kept or (len(stages) > 1 and aucs.get_lines()):
            aucs.legend(frameon=False)
        for ax in axes:
            finish(ax)
        return axes


def calibration(bins: Sequence[Bin], ax: Axes | None = None) -> Axes:
    """Share of clicks against mean prediction, with 95 % intervals; on the dashed line they are equal.

    Args:
        bins: of ``quality.deciles``.
        ax: where to draw.
    """
    with styled():
        ax = ax or new_axes(height=4.6)[0]
        highest = min(1.0, 1.08 * max([1e-6, *(max(b.predicted, b.clicked + Z95 * b.error) for b in bins)]))
        ax.plot([0, highest], [0, highest], color=INK, linewidth=1, linestyle="--", label="predicted = clicked")
        ax.errorbar(
            [b.predicted for b in bins],
            [b.clicked for b in bins],
            yerr=[Z95 * b.error for b in bins],
            color=COLOURS[0],
            marker="o",
            markersize=5,
            linewidth=1.3,
            elinewidth=1,
            capsize=2.5,
            label="a tenth of the rows",
        )
        ax.set_xlim(0, highest)
        ax.set_ylim(0, highest)
        ax.set_xlabel("Mean predicted probability")
        ax.set_ylabel("Share of clicks")
        ax.legend(frameon=False, loc="upper left")
        return finish(ax)


def bytes_by_table(tables: Rows, ax: Axes | None = None) -> Axes:
    """The serving bytes of each embedding table as a bar, largest on top.

    Args:
        tables: of ``report.json`` or ``tables_frame``: name, bytes; several rows of a name are one bar.
    """
    bytes_of: dict[str, int] = defaultdict(int)
    for row in records(tables):
        bytes_of[str(row["name"])] += row["bytes"]
    bars = sorted(bytes_of.items(), key=lambda item: -item[1])
    if len(bars) > SHOWN_TABLES:
        rest = bars[SHOWN_TABLES - 1 :]
        bars = [*bars[: SHOWN_TABLES - 1], (f"{len(rest)} smaller ones", sum(size for _, size in rest))]
    with styled():
        ax = ax or new_axes(height=0.9 + 0.17 * len(bars))[0]
        sizes = [size / MB for _, size in bars]
        drawn = ax.barh([plain(name) for name, _ in bars], sizes, color=COLOURS[0], height=0.65)
        ax.bar_label(drawn, [human_bytes(size) for _, size in bars], padding=3, fontsize=7.5)
        ax.set_xlim(0, max([*sizes, 1e-6]) * 1.18)  # room for the label of the longest bar
        ax.invert_yaxis()
        ax.margins(y=0.01)
        ax.set_xlabel("Serving size (MB)")
        finish(ax)
        ax.grid(False, axis="y")
        return ax


def _kept(events: Sequence[Mapping[str, Any]], best_step: int | None) -> list[Mapping[str, Any]]:
    """The evaluation of the last training stage whose weights were kept; none where it is not among the events."""
    evals = [e for e in events if e.get("event") == "eval"]
    return [e for e in evals if e["step"] == best_step and e.get("stage") == evals[-1].get("stage")][:1]


def _line(ax: Axes, events: Sequence[Mapping[str, Any]], key: str, name: str, **style: Any) -> None:
    points = [(e["step"], e[key]) for e in events if e.get(key) is not None]
    if len(points) == 1:  # no line to see
        style = {"marker": "o", "markersize": 4.5, **style}
    if points:
        ax.plot(*zip(*points), label=name, linewidth=1.3, **style)
