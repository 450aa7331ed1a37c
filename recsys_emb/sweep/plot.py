"""A sweep as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from recsys_emb.report.plots import memory_auc
from recsys_emb.sweep.results import Row


def plot(rows: Sequence[Row], model: str, with_vocabularies: bool = False, ax: Axes | None = None) -> Axes:
    """The plot of ``recsys-emb compare`` of points: mean AUC with its spread against bytes.

    Args:
        rows: of ``points``.
        model: its name.
        with_vocabularies: the bytes are those of the embeddings and of the vocabularies that they need.
        ax: where to draw.
    """
    keys = ("serving_bytes", "vocabulary_bytes") if with_vocabularies else ("serving_bytes",)
    drawn: list[dict[str, Any]] = [
        {**row, "model": model, "backend": row["method"], "settings": "", "serving_bytes": sum(row[k] for k in keys)}
        for row in rows
        if all(row[key] is not None for key in keys)
    ]
    ax = memory_auc(drawn, ax)
    if with_vocabularies:
        ax.set_xlabel("Embeddings and the vocabularies that they need (MB, log scale)")
    return ax
