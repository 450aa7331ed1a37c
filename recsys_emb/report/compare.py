"""Compares runs: rows for a program, and a page with the plots for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys_emb.errors import UserError
from recsys_emb.report.against import add_changes
from recsys_emb.report.runs import Report, group_by_seed, load_report, load_reports


def compare(
    runs: Sequence[str | Path], out: str | Path | None = None, against: str | Path | None = None
) -> list[Report]:
    """Reads finished runs and groups those that differ by seed alone.

    Args:
        runs: run folders or artifacts; one is enough, and a folder given twice counts once.
        out: an ``.html`` file to write, with the plot beside it as ``.png``.
        against: one more run; the others have the difference to its AUC, ``auc_change``, with its standard error.

    Returns:
        The rows of ``group_by_seed``.

    Raises:
        UserError: a folder that is no finished run, or an ``out`` that cannot be written.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {path}: expected the name of an .html file; the plot goes beside it as .png")
    reports = load_reports([*runs, *([] if against is None else [against])])
    base = None if against is None else load_report(against)
    if base is not None:
        add_changes(reports, base)
    rows = group_by_seed(reports)
    if path is not None:
        from recsys_emb.report.compare_page import write_compare_page  # matplotlib takes a while to import

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_compare_page(rows, path, base)
        except OSError as error:
            raise UserError(f"--out {path}: cannot write ({error.strerror}); choose another file") from None
    return rows
