"""What a search ends with: every trial as a table, the winner as a config, the test split looked at once.

With several budgets each has its result in a folder of its name, and the search's own files tell them together.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from optuna.study import Study

from recsys_emb.config import dump_config
from recsys_emb.embeddings.backends.field_dim import FieldDimConfig, named_widths
from recsys_emb.errors import UserError
from recsys_emb.files import write_json, write_text
from recsys_emb.report import run_page, search_page, searches_page
from recsys_emb.search.baselines import full_tables
from recsys_emb.search.bases import Bases
from recsys_emb.search.choosing import best_of_each, choose, correlation, front, hypervolume, importances
from recsys_emb.search.config import Search
from recsys_emb.search.finished import Finished, Part, collected, states, write_parquet
from recsys_emb.search.objective import FAILED, FREE
from recsys_emb.search.seeds import lead
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import group_of, train

Report = Mapping[str, Any]


def finish(
    search: Search, out: Path, studies: Sequence[Study], outside: Study, bases: Bases, asked: int, seeds: int
) -> dict[str, Any]:
    """Writes ``trials.parquet``, ``best.yaml``, ``search.json`` and ``report.html`` and looks at the test split.

    Args:
        search: what was searched.
        out: its folder.
        studies: of the trials that were drawn, one a budget.
        outside: of baselines that the space does not reach, and of candidates that were carried out.
        bases: of candidates that were compressed.
        asked: how many trials were wanted at each budget.
        seeds: how many seeds the best trial and the best baseline were to be trained from.

    Returns:
        what ``search.json`` holds.

    Raises:
        UserError: no trial is complete, so there is nothing to choose from; ``trials.parquet`` says why.
    """
    parts = collected(search, out, studies, outside)
    full = _full(search, out, bases)
    if len(parts) == 1:
        return _finish(parts[0], out, out, outside, full, asked, seeds)
    found: dict[str, dict[str, Any]] = {}
    missed: dict[str, str] = {}
    for part in parts:
        folder = out / part.search.at
        folder.mkdir(exist_ok=True)
        try:
            found[part.search.at] = _finish(part, out, folder, outside, full, asked, seeds)
        except UserError as error:
            missed[part.search.at] = str(error)
    if not found:
        raise UserError(next(iter(missed.values())))
    return _together(search, out, [f for part in parts for f in part.trained], found, missed, full)


def _finish(
    part: Part, out: Path, folder: Path, outside: Study, full: Report | None, asked: int, seeds: int
) -> dict[str, Any]:
    """The result of one budget, in ``folder``."""
    search, drawn, trained = part.search, part.drawn, part.trained
    main = search.task.main
    best = front(trained, main)
    for f in trained:
        f.row.update(pareto=f in best, winner=False)
    if candidates := [f for f in drawn if f not in trained]:
        write_parquet(candidates, folder / "candidates.parquet", main)
    try:
        winner = choose(search, part.fitting, drawn)
        winner.row["winner"] = True
    finally:
        write_parquet([_seen_from(folder, out, f) for f in trained], folder / "trials.parquet", main)
    write_text(folder / "best.yaml", dump_config(winner.of_config))
    rivals = best_of_each(search, part.fitting)
    shown = {winner.name, *(rival.name for rival in rivals or ())}
    shown |= {f.name for f in trained if f.row["enqueued"] and f.complete}
    reports = {f.name: _tested(f, out) for f in part.fitting if f.name in shown}

    def entry(finished: Finished) -> dict[str, Any]:
        return _entry(search, _seen_from(folder, out, finished), reports)

    found = {"params": _params(winner), "widths": _widths(search, winner), "tables": reports[winner.name]["tables"]}
    summary = {
        "study": part.study.study_name,
        **search.config.model_dump(mode="json", include={"mode", "scoring", "sampler", "pruner", "seed"}),
        "task": search.task.name,
        "dataset": search.dataset.name,
        "models": _models(search),
        "budget_bytes": search.budget,
        "full_bytes": search.full_bytes,
        "full": full,
        "states": states(drawn),
        "asked": asked,
        "trials": sum(f.row["state"] not in FREE and not f.row["enqueued"] for f in drawn),
        "scored": None if not candidates else "supernet" if search.config.scoring == "supernet" else "compressed",
        "failure": next((f.row["message"] for f in drawn if f.row["state"] == FAILED), None),
        "winner": entry(winner) | found,
        "baselines": [entry(f) for f in trained if f.row["enqueued"]],
        "lead": None if rivals is None else lead(out, outside, *rivals, main, seeds),
        "tolerance": search.config.tolerance,
        "front": [entry(f) for f in best],
        "hypervolume": hypervolume(best, search) if search.config.mode == "pareto" else None,
        "correlation": correlation(trained, main) if candidates else None,
        "importances": importances(part.study),
    }
    write_json(folder / "search.json", summary)
    search_page(folder)
    return summary


def _together(
    search: Search,
    out: Path,
    trained: Sequence[Finished],
    found: Mapping[str, Mapping[str, Any]],
    missed: Mapping[str, str],
    full: Report | None,
) -> dict[str, Any]:
    """What several budgets cost, and the front of all that was trained for any of them."""
    main = search.task.main
    best, winners = front(trained, main), {one["winner"]["name"] for one in found.values()}
    for f in trained:
        f.row.update(pareto=f in best, winner=f.name in winners)
    write_parquet(trained, out / "trials.parquet", main)
    outcomes = dict.fromkeys(state for one in found.values() for state in one["states"])
    kept = ("budget_bytes", "trials", "winner", "lead")
    at, first = next(iter(found.items()))
    summary = {
        "study": first["study"].removesuffix(f"-{at}"),
        "task": search.task.name,
        "dataset": search.dataset.name,
        "models": _models(search),
        "full_bytes": search.full_bytes,
        "full": full,
        "budgets": [{"at": at, **{key: one[key] for key in kept}} for at, one in found.items()],
        "missed": dict(missed),
        "states": {state: sum(one["states"].get(state, 0) for one in found.values()) for state in outcomes},
        "failure": next((one["failure"] for one in found.values() if one["failure"]), None),
        "front": [_entry(search, f, {}) for f in best],
    }
    write_json(out / "search.json", summary)
    searches_page(out)
    return summary


def _full(search: Search, out: Path, bases: Bases) -> Report | None:
    """The full tables with the base's settings, where something was made of them: their figures on both splits."""
    config = full_tables(search)
    folder = bases.folder(config)
    if not (folder / "config.yaml").is_file():
        return None
    report = train(config, folder, Silent(), resume=True)
    run_page(folder)
    main = search.task.main
    kept = {key: report[key] for key in (f"valid_{main.key}", "serving_bytes")}
    test = {key: report.get(key) for key in search.task.keys}
    return {"run": str(folder.relative_to(out)), **kept, "test": test}


def _tested(finished: Finished, out: Path) -> Report:
    """The report of a run, with figures of the test split; its page is written."""
    folder = out / finished.row["run"]
    report = train(finished.of_config, folder, Silent(), resume=True)
    run_page(folder)
    return report


def _seen_from(folder: Path, out: Path, finished: Finished) -> Finished:
    """The same with its run relative to ``folder``."""
    run = finished.row["run"]
    if run is None or folder == out or Path(run).is_absolute():
        return finished
    return replace(finished, row=finished.row | {"run": os.path.relpath(out / run, folder)})


def _entry(search: Search, finished: Finished, reports: Mapping[str, Report]) -> dict[str, Any]:
    report, row, main = reports.get(finished.name), finished.row, search.task.main
    return {
        "name": finished.name,
        "method": finished.method,
        "settings": finished.settings,
        "number": row["number"],
        "baseline": row["enqueued"],
        "state": row["state"],
        "message": row["message"],
        "run": row["run"],
        f"valid_{main.key}": row.get(main.key),
        "serving_bytes": row["serving_bytes"],
        "test": None if report is None else {key: report.get(key) for key in search.task.keys},
    }


def _models(search: Search) -> list[str]:
    """The names of the models that are searched, or of the one that is not."""
    searched = next((p for p in search.space.params if ("model", "name") in p.paths), None)
    return [search.base.model.name] if searched is None else [str(name) for name in searched.choices]


def _params(finished: Finished) -> dict[str, Any]:
    return {k.removeprefix("param:"): v for k, v in finished.row.items() if k.startswith("param:") and v is not None}


def _widths(search: Search, finished: Finished) -> dict[str, int] | None:
    """Columns by table, of a winner on ``field_dim``."""
    options = finished.of_config.embedding.options
    if not isinstance(options, FieldDimConfig):
        return None
    return named_widths(group_of(finished.of_config, search.dataset.schema), options)
