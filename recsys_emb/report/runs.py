"""Finished runs and artifacts as plain dicts: read from their folders, and grouped when they differ by seed alone."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_emb.errors import UserError
from recsys_emb.files import read_json, read_yaml
from recsys_emb.training.run_dir import RunDir
from recsys_emb.training.task import task_in

Report = dict[str, Any]

AVERAGED = (
    *("auc", "logloss", "ne", "calibration", "gauc", "bayes_auc", "bayes_gap", "valid_auc"),
    *("serving_bytes", "full_bytes", "ratio", "training_bytes", "peak_rss_bytes", "vocabulary_bytes"),
    *("samples_per_second", "train_seconds", "epochs"),
)
"""Keys of a report that are figures: a group of runs has their mean, and their spread as ``<key>_std``."""

_REQUIRED = ("model", "backend", "dataset", "seed", "serving_bytes", "training_bytes")
_SHOWN_ELSEWHERE = ("seed", "model.name", "embedding.backend", "embedding.budget", "data.path", "compact.budget")


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
        raise UserError(f"run {run}: not finished (no {missing[0]}); {RunDir(run).how_to_continue}")
    report = read_json(run / "report.json")
    main = task_in(report).main
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

    A row is a report whose figures are means, with ``<key>_std`` (sample standard deviation, None for one run),
    ``n``, ``seeds``, ``runs`` (folder names) and ``settings``: the config keys by which it differs from the rows
    of the same model, backend and budget, as ``"key=value, ..."``.
    """
    groups: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        flat = {key: value for key, value in _flat(report["config"]).items() if key != "seed"}
        identity = [report["model"], report["backend"], report["dataset"], sorted(flat.items())]
        groups[json.dumps(identity, default=str)].append(report)
    rows = [_mean_row(members) for members in groups.values()]
    _name_differences(rows)

    def rank(row: Report) -> tuple[str, str, float]:
        task = task_in(row)
        return str(row["dataset"]), task.name, -task.main.score(task.main.of(row))

    return sorted(rows, key=rank)


def _mean_row(members: list[Report]) -> Report:
    row = dict(members[0])
    for key in AVERAGED:
        values = [m[key] for m in members if m.get(key) is not None]
        row[key] = statistics.fmean(values) if values else None
        row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else None
    row["n"] = len(members)
    row["seeds"] = [m["seed"] for m in members]
    row["runs"] = [m["run"] for m in members]
    compact = row["config"].get("compact") or {}
    row["budget"] = (compact if compact.get("method") else row["config"].get("embedding") or {}).get("budget")
    return row


def _name_differences(rows: list[Report]) -> None:
    alike: dict[str, list[Report]] = defaultdict(list)
    for row in rows:
        alike[json.dumps([row["model"], row["backend"], row["dataset"], row["budget"]], default=str)].append(row)
    for cohort in alike.values():
        flats = [_flat(row["config"]) for row in cohort]
        keys = sorted({key for flat in flats for key in flat} - set(_SHOWN_ELSEWHERE))
        differing = [key for key in keys if len({repr(flat.get(key)) for flat in flats}) > 1]
        if len(cohort) > 1 and not differing:  # the same options on other data of the same name
            differing = ["data.path"]
        for row, flat in zip(cohort, flats):
            budget = [] if row["budget"] is None else [f"budget {row['budget']}"]
            row["settings"] = ", ".join(budget + [f"{key}={flat[key]}" for key in differing if key in flat])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
