"""Plots of runs, each a function that draws on matplotlib axes and returns them.

Without ``ax`` a new figure is made that no global state knows (``ax.figure``); pass axes of ``plt.subplots()`` to draw
into a notebook's figure.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from recsys_emb.report.columns import label
from recsys_emb.report.sizes import MB

# Okabe and Ito's colours (the blue lighter, for dark pages), told apart with every kind of colour vision; markers,
# fillings and dashes tell the series apart without any colour.
_COLOURS = ("#2E86C9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
_DASHES = ("-", "--", "-.", ":")
_INK = "#1b1f24"  # becomes the page's text colour in an inline SVG, see `svg`
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "recsys_emb",
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
}


def memory_auc(rows: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """Test AUC against serving size (MB, log axis), one line per model and backend, bars of one standard deviation.

    Args:
        rows: of ``load_reports`` or ``group_by_seed``; they should be of one dataset.
    """
    with rc_context(_STYLE):
        ax = ax or new_axes()[0]
        series: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            series[label(row)].append(row)
        models = list(dict.fromkeys(str(row["model"]) for row in rows))
        backends = sorted({str(row["backend"]) for row in rows})
        handles = []
        for name in sorted(series):
            members = sorted(series[name], key=_megabytes)
            model, backend = models.index(str(members[0]["model"])), backends.index(str(members[0]["backend"]))
            bars = ax.errorbar(
                [_megabytes(row) for row in members],
                [row["auc"] for row in members],
                yerr=[row.get("auc_std") or math.nan for row in members],  # NaN draws no bar
                # a backend keeps its colour and marker across models; a model has its dashes and filling
                color=_COLOURS[backend % len(_COLOURS)],
                marker=_MARKERS[backend % len(_MARKERS)],
                linestyle=_DASHES[model % len(_DASHES)],
                fillstyle="full" if model % 2 == 0 else "none",
                markersize=6,
                linewidth=1.3,
                elinewidth=1,
                capsize=2.5,
            )
            handles.append(bars.lines[0])
        sizes = [_megabytes(row) for row in rows] or [1.0]
        low, high = min(sizes), max(sizes)
        ax.set_xscale("log")
        margin = max(1.6, (12 * low / high) ** 0.5)  # at least a decade in all, for ticks at 1, 2 and 5
        ax.set_xlim(low / margin, high * margin)
        ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high / low < 50 else (1,)))
        ax.xaxis.set_minor_locator(LogLocator(10, subs=range(2, 10)) if high / low >= 50 else NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda megabytes, _: f"{megabytes:,.12g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlabel("Serving size of the embeddings (MB, log scale)")
        ax.set_ylabel("Test AUC")
        if handles:
            ax.legend(
                handles,
                [_plain(name) for name in sorted(series)],
                loc="upper center",
                bbox_to_anchor=(0.5, -0.17),
                ncols=min(len(models), 3),
                frameon=False,
            )
        return _finish(ax)


def learning_curves(events: Sequence[Mapping[str, Any]], axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Loss of training batches and of evaluations (first axes) and validation AUC (second) against the step.

    Args:
        events: of ``RunDir.metrics``, the lines of ``metrics.jsonl``.
        axes: two axes.
    """
    with rc_context(_STYLE):
        axes = axes if axes is not None else new_axes(2, height=4.6, sharex=True)
        losses, aucs = axes
        stages = list(dict.fromkeys(e.get("stage") for e in events))
        for i, stage in enumerate(stages):
            prefix = f"{stage}: " if len(stages) > 1 else ""
            dash = _DASHES[i % len(_DASHES)]
            train = [e for e in events if e.get("stage") == stage and e.get("event") == "train"]
            evals = [e for e in events if e.get("stage") == stage and e.get("event") == "eval"]
            _line(losses, train, "loss", _plain(f"{prefix}training loss"), color=_COLOURS[0], linestyle=dash)
            marked = {"linestyle": dash, "markersize": 4.5}
            _line(
                losses, evals, "logloss", _plain(f"{prefix}validation logloss"), color=_COLOURS[1], marker="s", **marked
            )
            _line(aucs, evals, "auc", _plain(f"{prefix}validation AUC"), color=_COLOURS[2], marker="^", **marked)
        losses.set_ylabel("Loss (nats)")
        aucs.set_ylabel("Validation AUC")
        aucs.set_xlabel("Step (batches)")
        if losses.get_lines():
            losses.legend(frameon=False)
        if len(stages) > 1 and aucs.get_lines():
            aucs.legend(frameon=False)
        for ax in axes:
            _finish(ax)
        return axes


def new_axes(rows: int = 1, width: float = 5.0, height: float = 3.7, sharex: bool = False) -> list[Axes]:
    """Axes one above the other on a new figure of so many inches, laid out so that nothing overlaps."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return list(figure.subplots(rows, squeeze=False, sharex=sharex).flat)


def png(ax: Axes) -> bytes:
    """The figure of the axes as a PNG file, dark on white."""
    buffer = io.BytesIO()
    with rc_context(_STYLE):
        _figure(ax).savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def svg(ax: Axes, description: str) -> str:
    """The figure of the axes as an ``<svg>`` element: transparent, its ink the colour of the text around it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with rc_context(_STYLE):
        _figure(ax).savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(_INK, "currentColor")
    text = text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)
    return text


def _figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None  # of axes that were removed from theirs
    return figure


def _megabytes(row: Mapping[str, Any]) -> float:
    return max(row["serving_bytes"], 1) / MB  # a log axis has no 0


def _line(ax: Axes, events: Sequence[Mapping[str, Any]], key: str, name: str, **style: Any) -> None:
    points = [(e["step"], e[key]) for e in events if e.get(key) is not None]
    if points:
        ax.plot(*zip(*points), label=name, linewidth=1.3, **style)


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # a pair of dollars would be read as mathematics


def _finish(ax: Axes) -> Axes:
    ax.grid(True, color=_INK, alpha=0.15, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.ticklabel_format(axis="y", useOffset=False)
    return ax
