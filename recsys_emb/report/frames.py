"""Runs, their tables and curves, and the trials of a search as pandas frames, for notebooks that go their own way.

``pandas`` comes with the extra ``notebooks``; the pages do without.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from recsys_emb.errors import UserError
from recsys_emb.report.runs import group_by_seed, load_report, load_reports
from recsys_emb.training.run_files import read_metrics

if TYPE_CHECKING:
    import pandas as pd

Rows = Any
"""A sequence of mappings, or a frame (pandas or polars) of the same columns."""


def runs_frame(runs: Sequence[str | Path], by_seed: bool = True) -> pd.DataFrame:
    """Finished runs and artifacts, a row each: the keys of ``report.json`` but the nested ones.

    Args:
        runs: their folders.
        by_seed: runs that differ by seed alone make one row, with means, ``<figure>_std``, ``n`` and ``settings``.

    Raises:
        UserError: a folder that is no finished run.
    """
    reports = load_reports(runs)
    rows = group_by_seed(reports) if by_seed else reports
    return _frame([{k: v for k, v in row.items() if not isinstance(v, Mapping) and k != "tables"} for row in rows])


def tables_frame(run: str | Path) -> pd.DataFrame:
    """The embedding tables of a run or an artifact: name, ids, rows, width, bytes and form. UserError: no such run."""
    return _frame(load_report(run).get("tables") or [])


def events_frame(run: str | Path) -> pd.DataFrame:
    """The lines of a run's ``metrics.jsonl``: event, stage, step, epoch, loss, auc, ... UserError: no run."""
    load_report(run)  # says what is wrong with the folder
    return _frame(read_metrics(Path(run)))


def trials_frame(search: str | Path, name: str = "trials") -> pd.DataFrame:
    """The trials of a search: state, AUC, bytes, a ``param:`` column for each searched path.

    Args:
        search: its folder.
        name: ``trials``, or ``candidates`` for what a supernet scored.

    Raises:
        UserError: no such table, or a damaged one.
    """
    return _frame(load_trials(Path(search) / f"{name}.parquet"))


def load_trials(path: Path) -> list[dict[str, Any]]:
    """The rows of ``trials.parquet`` or ``candidates.parquet``. UserError when it cannot be read."""
    try:
        return records(pl.read_parquet(path))
    except (OSError, pl.exceptions.PolarsError):
        what = "cannot be read" if path.exists() else "not there"
        raise UserError(f"{path}: {what}; `recsys-emb search CONFIG --out DIR --resume` finishes a search") from None


def records(rows: Rows) -> list[dict[str, Any]]:
    """Rows as dicts with None where there is no figure, whatever table they come in."""
    if hasattr(rows, "iter_rows"):  # polars
        return list(rows.iter_rows(named=True))
    if hasattr(rows, "to_dict"):  # pandas writes "no figure" as NaN
        return [
            {key: None if value != value else value for key, value in row.items()} for row in rows.to_dict("records")
        ]
    return [dict(row) for row in rows]


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError:
        raise UserError("frames need pandas: pip install 'recsys_emb[notebooks]'") from None
    return pd.DataFrame([{key: math.nan if value is None else value for key, value in row.items()} for row in rows])
