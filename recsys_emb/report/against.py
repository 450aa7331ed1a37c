"""The difference of every run's AUC to that of one run, by the predictions that runs keep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recsys_emb.data.folder import checksum
from recsys_emb.report.runs import Report, identity
from recsys_emb.training.delong import auc_change
from recsys_emb.training.run_files import PREDICTIONS
from recsys_emb.training.stored_predictions import StoredPredictions


def add_changes(reports: Sequence[Report], base: Report) -> None:
    """Notes in each report ``auc_change`` and ``auc_change_stderr`` against the base, or the base's run of its seed.

    Runs of other datasets, and the base's own, get none; the error is None where it is not known: a run that has no
    predictions, or not of the same rows in the same order.
    """
    same = identity(base)
    bases = {report["seed"]: report for report in (base, *reports) if identity(report) == same}
    for report in reports:
        if identity(report) == same or report["dataset"] != base["dataset"]:
            continue
        partner = bases.get(report["seed"])
        auc = base["auc"] if partner is None else partner["auc"]
        report["auc_change"] = report["auc"] - auc
        report["auc_change_stderr"] = None if partner is None else _stderr(partner, report)


def _stderr(before: Report, after: Report) -> float | None:
    """The standard error of the difference of two runs."""
    mine, stored = (Path(report["path"]) / PREDICTIONS for report in (after, before))
    made = after.get("change_from_run") or {}
    if made.get("predictions") and stored.is_file() and made["predictions"] == checksum(stored):
        return made["stderr"]  # an artifact of that very run
    ours, theirs = StoredPredictions.load(mine), StoredPredictions.load(stored)
    if ours is None or theirs is None or not ours.same_rows(theirs):
        return None
    return auc_change(theirs.logits, ours.logits, ours.labels, ours.weights)[1]
