"""Finished runs and artifacts as plain dicts: read from their folders, and grouped when they differ by seed alone."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recsys_emb.errors import UserError
from recsys_emb.files import read_json, read_yaml
from recsys_emb.report.differences import differing, in_words, settings_of
from recsys_emb.report.intervals import error_of_mean
from recsys_emb.sizes import TotalBudget, budget_bytes, parse_budget
from recsys_emb.training.main_metric import main_metric_in
from recsys_emb.training.run_files import how_to_continue

Report = dict[str, Any]

AVERAGED = (
    *("auc", "logloss", "ne", "calibration", "gauc", "bayes_auc", "bayes_gap", "valid_auc", "auc_change"),
    *("serving_bytes", "full_bytes", "ratio", "training_bytes", "peak_rss_bytes", "vocabulary_bytes"),
    *("dense_bytes", "served_bytes"),
    *("samples_per_second", "train_seconds", "epochs"),
)
"""Keys of a report that are figures: a group of runs has their mean, and their spread as ``<key>_std``."""

_REQUIRED = ("model", "backend", "dataset", "seed", "serving_bytes", "training_bytes")
_BUDGETS = ("embedding.budget", "compact.budget")


def load_report(run_dir: str | Path) -> Report:
    """``report.json`` of a finished run or an artifact, with what ``compare`` needs beside it.

    Added are ``run`` (folder name), ``path``, ``config`` and ``bayes_gap``.

    ``bayes_gap`` is ``bayes_auc - auc``, None where the best possible AUC is not known.

    Raises:
        UserError: no such folder, not a run, a run that is not finished, or a report that cannot be read.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise UserError(f"run {run}: no such folder")
    artifact = (run / "artifact.json").is_file()
    if not artifact and not (run / "config.yaml").is_file():
        raise UserError(f"run {run}: not a run folder (no config.yaml); give one written by `recsys-emb train`")
    missing = [name for name in ("DONE", "report.json") if not artifact and not (run / name).is_file()]
    if missing:
        raise UserError(f"run {run}: not finished (no {missing[0]}); {how_to_continue(run)}")
    report = read_json(run / "report.json")
    main = main_metric_in(report)
    if artifact and report.get(main.key) is None:
        raise UserError(f"artifact {run}: has no figures yet; run `recsys-emb evaluate {run}` first")
    absent = [key for key in (*_REQUIRED, main.key) if key not in report]
    if absent:
        raise UserError(f"{run / 'report.json'}: lacks the key {absent[0]!r}; train the run again")
    config = _artifact_config(run) if artifact else read_yaml(run / "config.yaml", "config", "what training wrote")
    bayes = report.get("bayes_auc")
    return {
        **report,
        "bayes_gap": None if bayes is None else bayes - report["auc"],
        "run": run.resolve().name,
        "path": str(run),
        "config": config,
    }


def load_reports(run_dirs: Iterable[str | Path]) -> list[Report]:
    """``load_report`` of each folder, in order; a folder given twice counts once. UserError when there is none."""
    folders = {Path(run).resolve(): Path(run) for run in run_dirs}
    if not folders:
        raise UserError("no runs given; name at least one folder written by `recsys-emb train`")
    return [load_report(run) for run in folders.values()]


def _artifact_config(artifact: Path) -> dict[str, Any]:
    """The config of the run that an artifact was made from, with how it was made under ``compact``."""
    path = artifact / "artifact.json"
    manifest = read_json(path)
    try:
        return {**manifest["config"], "artifact": "yes", "compact": manifest["compact"]}
    except (KeyError, TypeError):
        raise UserError(f"{path}: lacks 'config' or 'compact'; compact the run again") from None


def group_by_seed(reports: Sequence[Report]) -> list[Report]:
    """One row per config, the mean of its seeds; by dataset and task, the best first.

    A row is a report whose figures are means, with ``<key>_std`` (sample standard deviation, None for one run) and

    - ``n``, ``seeds``, ``runs`` (folder names), ``paths``;
    - ``budget_bytes``: what the embeddings were allowed to take (with vocabularies and network, where
      ``budget.total`` says so), None for anything;
    - ``settings``: by what the row differs from others of its model and backend, but for the budget, in words;
    - ``auc_error`` and ``auc_change_error``: standard errors of the means, see ``intervals.py``.
    """
    groups: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        groups[identity(report)].append(report)
    rows = [_mean_row(members) for members in groups.values()]
    _name_settings(rows)

    def rank(row: Report) -> tuple[str, str, float]:
        main = main_metric_in(row)
        return str(row["dataset"]), main.key, -main.score(main.of(row))

    return sorted(rows, key=rank)


def identity(report: Report) -> str:
    """What runs have in common that differ by seed alone."""
    settings = {key: value for key, value in settings_of(report).items() if key not in ("seed", *_BUDGETS)}
    named = [report["model"], report["backend"], report["dataset"], _budget_bytes(report)]
    return json.dumps([*named, sorted(settings.items())], default=str)


def _mean_row(members: list[Report]) -> Report:
    row = dict(members[0])
    for key in AVERAGED:
        values = [m[key] for m in members if m.get(key) is not None]
        row[key] = statistics.fmean(values) if values else None
        row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    for key in ("auc", "auc_change"):
        row[f"{key}_error"] = error_of_mean([m.get(f"{key}_stderr") for m in members], row[f"{key}_std"])
    row["n"] = len(members)
    row["seeds"] = [m["seed"] for m in members]
    row["runs"] = [m["run"] for m in members]
    row["paths"] = [m["path"] for m in members]
    row["budget_bytes"] = _budget_bytes(row)
    return row


def _budget_bytes(report: Report) -> int | None:
    compact = report["config"].get("compact") or {}
    given = (compact if compact.get("method") else report["config"].get("embedding") or {}).get("budget")
    budget = parse_budget(given)
    return budget.bytes if isinstance(budget, TotalBudget) else budget_bytes(budget, report.get("full_bytes") or 0)


def _name_settings(rows: Sequence[Report]) -> None:
    alike: dict[str, list[Report]] = defaultdict(list)
    for row in rows:
        alike[json.dumps([row["model"], row["backend"], row["dataset"]], default=str)].append(row)
    for cohort in alike.values():
        keys = differing(cohort)
        told = [(row["budget_bytes"], in_words(row, keys)) for row in cohort]
        if len(set(told)) < len(told):  # the same options on other data of the same name
            keys = [*keys, "data.path"]
        for row in cohort:
            row["settings"] = in_words(row, keys)
