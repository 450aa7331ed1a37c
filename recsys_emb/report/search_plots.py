"""Plots of a search, each a function that draws on matplotlib axes and returns them, as ``plots`` does for runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from recsys_emb.report.differences import brief, short_names
from recsys_emb.report.figure import (
    COLOURS,
    INK,
    auc_axes,
    figure_of,
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
from recsys_emb.sizes import MB

MARKERS, LINES = "s^vP*", ("--", ":", "-.", (0, (6, 2)))
"""Styles of baselines: names in the legend, since what they stand at often lies close together."""
SHOWN_IMPORTANCES = 20
"""Parameters in the plot of importances; the least important ones are left out."""


def history(trials: Rows, figure: str = "auc", ax: Axes | None = None) -> Axes:
    """Validation AUC by trial, the best so far as a line; infeasible and failed trials are marks on the floor.

    Args:
        trials: rows of ``trials.parquet`` or ``candidates.parquet``. Those without a number are baselines that the
            space does not reach: lines across.
        figure: ``auc``, or ``score`` for that on the supernet.
    """
    rows = [{**row, "auc": row[figure]} for row in records(trials)]
    outside = [row for row in rows if row["number"] is None and row["state"] == "complete"]
    rows = sorted((row for row in rows if row["number"] is not None), key=lambda row: row["number"])
    with styled():
        own, ax = ax is None, ax or new_axes()[0]
        complete = [row for row in rows if row["state"] == "complete"]
        pruned = [row for row in rows if row["state"] == "pruned" and row["auc"] is not None]
        _points(ax, [row for row in complete if row["enqueued"] is None], "trial", marker="o", color=COLOURS[0])
        _points(ax, [row for row in complete if row["enqueued"] is not None], "baseline", marker="s", color=COLOURS[1])
        _points(ax, pruned, "pruned", marker="x", color=COLOURS[6])
        if complete:
            numbers, best = [row["number"] for row in complete], accumulate((row["auc"] for row in complete), max)
            ax.step(numbers, list(best), where="post", color=INK, linewidth=1, label="best so far")
        for state, marker in (("infeasible", "v"), ("failed", "X")):
            numbers = [row["number"] for row in rows if row["state"] == state]
            if numbers:
                floor = ax.get_xaxis_transform()
                style: dict[str, Any] = {"linestyle": "none", "color": COLOURS[6], "markersize": 7, "clip_on": False}
                ax.plot(numbers, [0] * len(numbers), marker=marker, transform=floor, label=state, **style)
        for row, line in zip(outside, cycle(LINES)):
            ax.axhline(row["auc"], color=COLOURS[1], linewidth=1.2, linestyle=line, label=row["enqueued"])
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("Trial")
        auc_axes(ax, y="Validation AUC" if figure == "auc" else "Score (validation AUC)")
        _legend(ax, grow=own)
        return finish(ax)


def pareto(trials: Rows, budget_bytes: float | None = None, ax: Axes | None = None) -> Axes:
    """Validation AUC against serving size (MB, log axis): every finished trial, the front, the winner, each baseline.

    Args:
        trials: rows of ``trials.parquet``.
        budget_bytes: drawn as a line.
    """
    with styled():
        own, ax = ax is None, ax or new_axes()[0]
        rows = [row for row in records(trials) if row["state"] == "complete" and row["serving_bytes"] is not None]
        front = pareto_front(rows)
        others = [row for row in rows if row not in front and row["enqueued"] is None]
        _points(ax, others, "trial", megabytes, marker="o", color=COLOURS[6], markersize=4)
        baselines = [row for row in rows if row["enqueued"] is not None]
        for row, marker in zip(baselines, cycle(MARKERS)):
            _points(ax, [row], row["enqueued"], megabytes, marker=marker, color=COLOURS[1], markersize=7)
        xs, ys = [megabytes(row) for row in front], [row["auc"] for row in front]
        ax.step(xs, ys, where="post", color=COLOURS[0], linewidth=1.3)
        ax.plot(xs, ys, linestyle="none", marker="D", color=COLOURS[0], markersize=4.5, label="Pareto front")
        winner = [row for row in rows if row.get("winner")]
        _points(ax, winner, "winner", megabytes, marker="o", color=INK, fillstyle="none", markersize=11)
        sizes = [megabytes(row) for row in rows]
        if budget_bytes:
            sizes.append(budget_bytes / MB)
            ax.axvline(budget_bytes / MB, color=INK, linewidth=1, linestyle="--", label="budget")
        log_axis(ax, sizes)
        ax.set_xlabel("Serving size of the embeddings (MB, log scale)")
        auc_axes(ax, y="Validation AUC")
        _legend(ax, grow=own)
        return finish(ax)


def pareto_front(trials: Rows) -> list[dict[str, Any]]:
    """The finished trials that no other beats in both AUC and serving size, smallest first."""
    rows = [row for row in records(trials) if row["state"] == "complete" and row["serving_bytes"] is not None]
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["serving_bytes"], -row["auc"])):
        if not front or row["auc"] > front[-1]["auc"]:
            front.append(row)
    return front


def scores(trials: Rows, ax: Axes | None = None) -> Axes:
    """Validation AUC against the score, of the scored candidates that were carried out.

    Args:
        trials: rows of ``trials.parquet`` of a search whose candidates were scored.
    """
    rows = [row for row in records(trials) if row["state"] == "complete" and row["score"] is not None]
    with styled():
        ax = ax or new_axes()[0]
        _points(ax, rows, "candidate", lambda row: row["score"], marker="o", color=COLOURS[0])
        auc_axes(ax, x="Score (validation AUC)", y="Validation AUC when carried out")
        return finish(ax)


def importances(shares: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """How much of the variation of the validation AUC each parameter explains, the most important on top.

    Args:
        shares: of ``optuna.importance.get_param_importances``, by config path.
    """
    shown = sorted(shares.items(), key=lambda item: item[1])[-SHOWN_IMPORTANCES:]
    with styled():
        ax = ax or new_axes(height=1.2 + 0.2 * len(shown))[0]
        names = [plain(shortened(brief(name))) for name in short_names([path for path, _ in shown]).values()]
        bars = ax.barh(names, [share for _, share in shown], color=COLOURS[0], height=0.6)
        ax.bar_label(bars, fmt="{:.0%}", padding=3, fontsize=8)
        ax.xaxis.set_major_formatter("{x:.0%}")
        ax.set_xlim(0, max([0.01, *shares.values()]) * 1.15)
        ax.set_xlabel("Importance (share of all)")
        finish(ax)
        ax.grid(False, axis="y")
        return ax


def widths(tables: Rows, ax: Axes | None = None) -> Axes:
    """The width of each embedding table against the size of its vocabulary (both log axes, 0 at the bottom).

    Args:
        tables: rows with ``name``, ``ids`` and ``width``, those of ``report.json`` or ``tables_frame``.
    """
    names: dict[tuple[int, float], list[str]] = defaultdict(list)
    for row in records(tables):
        if row.get("ids") and row.get("width") is not None:
            names[row["ids"], row["width"]].append(str(row["name"]))
    rows: list[dict[str, Any]] = [
        {"ids": n, "width": w, "name": brief("+".join(here))} for (n, w), here in names.items()
    ]
    with styled():
        ax = ax or new_axes()[0]
        ax.plot([row["ids"] for row in rows], [row["width"] for row in rows], "o", color=COLOURS[0], markersize=5)
        log_axis(ax, [row["ids"] for row in rows])
        ax.set_yscale("symlog", base=2, linthresh=1)
        ticks = sorted({row["width"] for row in rows})
        ax.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.set_yticks([], minor=True)
        ax.set_ylim(-0.25 if 0 in ticks else 0.75 * min([1, *ticks]), max([1, *ticks]) * 1.5)
        ax.set_xlabel("Ids in the vocabulary (log scale)")
        ax.set_ylabel("Width (columns)")
        finish(ax)
        _name_fields(ax, rows)
        return ax


def _name_fields(ax: Axes, rows: Sequence[Mapping[str, Any]], size: int = 7) -> None:
    """Names beside points, the largest vocabularies first; a name that would lie on another one is left out."""
    taken: list[tuple[float, float, float, float]] = []
    for row in sorted(rows, key=lambda row: -row["ids"]):
        at, name = (row["ids"], row["width"]), plain(row["name"])
        left, low = ax.transData.transform(at) * 72 / ax.figure.dpi + (3, 4)
        right, high = left + 0.7 * size * len(name), low + size
        if all(left > r or right < x or low > h or high < y for x, y, r, h in taken):
            taken.append((left, low, right, high))
            ax.annotate(name, at, xytext=(3, 4), textcoords="offset points", fontsize=size)


def _points(ax: Axes, rows: Sequence[Mapping[str, Any]], name: str, x: Any = None, **style: Any) -> None:
    if rows:
        xs = [row["number"] if x is None else x(row) for row in rows]
        style = {"linestyle": "none", "markersize": 5, "label": name, **style}
        ax.plot(xs, [row["auc"] for row in rows], **style)


def _legend(ax: Axes, grow: bool) -> None:
    """What is drawn, below the axes; a figure of our own grows by it."""
    handles, names = ax.get_legend_handles_labels()
    if not handles:
        return
    if grow:
        figure_of(ax).set_figheight(height_with_legend(names))
    legend_below(ax, handles, names)
