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

from recsys_emb.report.columns import label
from recsys_emb.report.figure import COLOURS, DASHES, MARKERS, finish, log_axis, megabytes, new_axes, plain, styled
from recsys_emb.report.frames import Rows, records
from recsys_emb.sizes import MB, human_bytes

SHOWN_TABLES = 40
"""Tables in the plot of bytes; the smallest others are one bar."""


def memory_auc(rows: Rows, ax: Axes | None = None) -> Axes:
    """Test AUC against serving size (MB, log axis), one line per model and backend, bars of one standard deviation.

    Args:
        rows: of ``load_reports``, ``group_by_seed`` or ``runs_frame``; they should be of one dataset.
    """
    rows = records(rows)
    series: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        series[label(row)].append(row)
    with styled():
        ax = ax or new_axes(height=memory_auc_height(len(series)))[0]
        models = list(dict.fromkeys(str(row["model"]) for row in rows))
        backends = sorted({str(row["backend"]) for row in rows})
        handles = []
        for name in sorted(series):
            members = sorted(series[name], key=megabytes)
            model, backend = models.index(str(members[0]["model"])), backends.index(str(members[0]["backend"]))
            bars = ax.errorbar(
                [megabytes(row) for row in members],
                [row["auc"] for row in members],
                yerr=[row.get("auc_std") or math.nan for row in members],  # NaN draws no bar
                # a backend keeps its colour and marker across models; a model has its dashes and filling
                color=COLOURS[backend % len(COLOURS)],
                marker=MARKERS[backend % len(MARKERS)],
                linestyle=DASHES[model % len(DASHES)],
                fillstyle="full" if model % 2 == 0 else "none",
                markersize=6,
                linewidth=1.3,
                elinewidth=1,
                capsize=2.5,
            )
            handles.append(bars.lines[0])
        sizes = [megabytes(row) for row in rows] or [1.0]
        log_axis(ax, sizes)
        ax.set_xlabel("Serving size of the embeddings (MB, log scale)")
        ax.set_ylabel("Test AUC")
        if handles:
            ax.legend(
                handles,
                [plain(name) for name in sorted(series)],
                loc="upper center",
                bbox_to_anchor=(0.5, -0.17),
                ncols=min(len(models), 3) if len(models) > 1 else 1 + (len(series) > 4),
                frameon=False,
            )
        return finish(ax)


def memory_auc_height(series: int) -> float:
    """Inches that ``memory_auc`` wants for so many lines, which its legend names."""
    return 3.4 + 0.09 * series


def learning_curves(events: Rows, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Loss of training batches and of evaluations (first axes) and validation AUC (second) against the step.

    Args:
        events: of ``RunDir.metrics`` or ``events_frame``, the lines of ``metrics.jsonl``.
        axes: two axes.
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
        losses.set_ylabel("Loss (nats)")
        aucs.set_ylabel("Validation AUC")
        aucs.set_xlabel("Step (batches)")
        if losses.get_lines():
            losses.legend(frameon=False)
        if len(stages) > 1 and aucs.get_lines():
            aucs.legend(frameon=False)
        for ax in axes:
            finish(ax)
        return axes


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


def _line(ax: Axes, events: Sequence[Mapping[str, Any]], key: str, name: str, **style: Any) -> None:
    points = [(e["step"], e[key]) for e in events if e.get(key) is not None]
    if len(points) == 1:  # no line to see
        style = {"marker": "o", "markersize": 4.5, **style}
    if points:
        ax.plot(*zip(*points), label=name, linewidth=1.3, **style)
