"""What every plot shares: its style, new figures, and their files."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate, pairwise
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    AutoLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from recsys_emb.sizes import MB

# Okabe and Ito's colours (the blue lighter, for dark pages), told apart with every kind of colour vision, then those
# farthest from them in OKLab that stand out on white and on near-black; markers, fillings and dashes tell the series
# apart without any colour. As many as have no factor in common with the markers: pairs repeat after 143.
COLOURS = (
    *("#2E86C9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A8A8A"),
    *("#8F29BE", "#857A0A", "#B32456", "#82C43B", "#63567B", "#3A4FE1"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*")
LEAST_AUC_SPAN = 0.001
DASHES = ("-", "--", "-.", ":")
INK = "#1b1f24"  # becomes the page's text colour in an inline SVG, see `svg`
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8.5,
    "svg.hashsalt": "recsys_emb",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
}


def styled() -> Any:
    """A context in which axes are made and drawn on in the style of all plots."""
    return rc_context(STYLE)


def new_axes(rows: int = 1, width: float = 5.0, height: float = 3.7, sharex: bool = False) -> list[Axes]:
    """Axes one above the other on a new figure of so many inches, laid out so that nothing overlaps.

    No global state knows the figure.
    """
    with styled():
        figure = Figure(figsize=(width, height), layout="constrained")
        return list(figure.subplots(rows, squeeze=False, sharex=sharex).flat)


def finish(ax: Axes) -> Axes:
    """A faint grid behind the data, and figures on the axis instead of an offset, as many as do not collide."""
    ax.grid(True, color=INK, alpha=0.15, linewidth=0.6)
    ax.set_axisbelow(True)
    for axis in (ax.xaxis, ax.yaxis):
        formatter = axis.get_major_formatter()
        if isinstance(formatter, ScalarFormatter):
            formatter.set_useOffset(False)
    if isinstance(ax.xaxis.get_major_locator(), AutoLocator):
        ax.xaxis.set_major_locator(MaxNLocator(5))
    return ax


def auc_axes(ax: Axes, *, x: str = "", y: str = "") -> None:
    """Titles axes that show AUC and lets them span a thousandth at least: less is no difference to look at, and its
    figures would be too long to stand side by side. Call it when all is drawn."""
    if x:
        ax.set_xlabel(x)
        ax.set_xlim(*_at_least(ax.get_xlim()))
    if y:
        ax.set_ylabel(y)
        ax.set_ylim(*_at_least(ax.get_ylim()))


def _at_least(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    more = max(0.0, LEAST_AUC_SPAN - (high - low)) / 2
    return low - more, high + more


def log_axis(ax: Axes, values: Sequence[float]) -> None:
    """Makes ``x`` a log axis around ``values`` with ticks in plain numbers, at 1, 2 and 5 where there is room."""
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    margin = max(1.6, (12 * low / high) ** 0.5)  # at least a decade in all
    ax.set_xscale("log")
    ax.set_xlim(low / margin, high * margin)
    ax.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high / low < 50 else (1,)))
    ax.xaxis.set_minor_locator(LogLocator(10, subs=range(2, 10)) if high / low >= 50 else NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def megabytes(row: Mapping[str, Any], key: str = "serving_bytes") -> float:
    """A size of a row, at least a byte: a log axis has no 0."""
    return max(row[key], 1) / MB


def plain(text: str) -> str:
    """Text that matplotlib shows as it is: a pair of dollars would be read as mathematics."""
    return text.replace("$", r"\$")


def shortened(text: str, most: int = 40) -> str:
    """Text that leaves room for the plot beside it; its middle goes, since both ends tell names apart."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def legend_below(ax: Axes, handles: Sequence[Any], names: Sequence[str]) -> None:
    """What the handles mean, below the axes and within the figure's width, however long the names are."""
    ax.legend(
        handles,
        [plain(shortened(name)) for name in names],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.17),
        ncols=legend_columns(names),
        frameon=False,
    )


_FIGURE_CHARACTERS, _HANDLE = 84, 8
"""Letters of a legend that a figure has room for, and those that a line or a marker takes."""


def legend_columns(names: Sequence[str], most: int = 3) -> int:
    """How many columns of names stand side by side in a figure's width."""
    lengths = [len(shortened(name)) for name in names]
    for columns in range(min(most, len(names)), 1, -1):
        # matplotlib fills columns one after the other, the first ones with one name more
        rows, more = divmod(len(names), columns)
        ends = list(accumulate([rows + 1] * more + [rows] * (columns - more), initial=0))
        widths = [max(lengths[start:end]) + _HANDLE for start, end in pairwise(ends)]
        if sum(widths) <= _FIGURE_CHARACTERS:
            return columns
    return 1


def height_with_legend(names: Sequence[str]) -> float:
    """Inches of a figure whose plot keeps its height above a legend of these names."""
    return 3.2 + 0.18 * -(-len(names) // legend_columns(names))


def png(ax: Axes) -> bytes:
    """The figure of the axes as a PNG file, dark on white."""
    buffer = io.BytesIO()
    with styled():
        figure_of(ax).savefig(buffer, format="png", dpi=200, facecolor="white")
    return buffer.getvalue()


def svg(ax: Axes, description: str) -> str:
    """The figure of the axes as an ``<svg>`` element: transparent, its ink the colour of the text around it."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with styled():
        figure_of(ax).savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(description)}" ', 1)


def figure_of(ax: Axes) -> Figure:
    """What the axes are drawn on."""
    figure = ax.get_figure(root=True)
    assert figure is not None  # of axes that were removed from theirs
    return figure
