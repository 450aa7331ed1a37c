"""The page of a sweep: AUC against bytes, every method at every budget, what memory consists of, settings tried."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from recsys_emb.report import html
from recsys_emb.report.figure import svg
from recsys_emb.sizes import human_bytes, in_mb
from recsys_emb.sweep.plot import plot
from recsys_emb.sweep.results import Result, Row, best_trial, by_method, points, settings_of
from recsys_emb.sweep.tables import auc_cell, budget_name, budgets_of, method_name, out_of_reach, trial_score


def sweep_page(name: str, results: Sequence[Result]) -> str:
    """The whole document.

    Args:
        name: of the sweep: what was swept.
        results: one a seed.
    """
    rows = points(results)
    seeds = ", ".join(str(result["seed"]) for result in results)
    config = results[0].get("config")
    model = config["model"]["name"] if config else name.rpartition("-")[2]
    return html.page(
        f"{model}: every method at every budget" if name == "sweep" else f"Sweep {name}",
        f"seed{'s' * (len(results) > 1)} {seeds}; mean ± sample standard deviation, test split",
        html.section("Memory and AUC", html.figures(*_plots(rows, model))),
        html.section("Test AUC by budget", _grid(rows), note=_GRID_NOTE),
        html.section("Figures", _figures(rows), note=_FIGURES_NOTE),
        _trials(results),
        html.section("Config", html.preformatted(yaml.safe_dump(config, sort_keys=False))) if config else "",
    )


_GRID_NOTE = (
    "Budgets are ratios to the full tables of the config's width. Below an AUC stands the ratio that the method took."
)
_FIGURES_NOTE = (
    "Lost is the test AUC of the full tables minus that of the row, seed by seed, in thousandths. Embeddings, "
    "vocabularies where the method needs the list of ids, and the rest of the network make up what is served. "
    "1 MB is 1,000,000 bytes."
)
_TRIALS_NOTE = "One seed each, on the validation split; each method took the settings of the highest AUC."


def _plots(rows: Sequence[Row], model: str) -> list[str]:
    joined = "Lines join the budgets of one method; bars are one standard deviation over seeds."
    captions = {
        False: f"Test AUC against the size of the embeddings when served. {joined}",
        True: "The same with the vocabularies that turn raw values into ids, where the method needs the list of ids.",
    }
    told = {True} if any(row["vocabulary_bytes"] is not None for row in rows) else set()
    return [
        html.figure(svg(plot(rows, model, both), "Test AUC against serving size"), captions[both])
        for both in (False, *told)
    ]


def _grid(rows: Sequence[Row]) -> str:
    budgets = [None, *budgets_of(rows)]
    headers = [html.Header("Method", number=False), *(html.Header(budget_name(budget)) for budget in budgets)]
    cells = [
        [html.Cell(method_name(at)), *(_auc(at.get(budget)) for budget in budgets)] for at in by_method(rows).values()
    ]
    return html.table(headers, cells)


def _auc(row: Row | None) -> html.Cell:
    if row is None or row["auc"] is None:
        return html.Cell(out_of_reach(row))
    auc, _, taken = auc_cell(row).partition(" (")
    return html.Cell(auc, f"({taken}", row["auc"])


_SIZES = {
    "serving_bytes": ("Embeddings", "all that the embeddings need when served"),
    "vocabulary_bytes": ("Vocabularies", "what turns raw values into ids, where the method needs the list of ids"),
    "dense_bytes": ("Network", "the rest of the model"),
}


def _figures(rows: Sequence[Row]) -> str:
    sizes = {key: told for key, told in _SIZES.items() if any(row[key] is not None for row in rows)}
    headers = [
        html.Header("Method", number=False),
        html.Header("Budget", "ratio to the full tables"),
        html.Header("AUC", "area under the ROC curve, test split"),
        html.Header("Lost", "thousandths of AUC below the full tables"),
        *(html.Header(f"{part} (MB)", meaning) for part, meaning in sizes.values()),
        html.Header("Settings", number=False),
        html.Header("Seeds", "that have a figure"),
    ]
    cells = [
        [
            html.Cell(row["method"]),
            html.Cell(budget_name(row["budget"]), value=row["budget"] or 2.0),
            html.Cell(out_of_reach(row)) if row["auc"] is None else _mean(row, "auc", ".4f"),
            _mean(row, "lost", "+.1f", 0.001),
            *(_size(row[key]) for key in sizes),
            html.Cell(row["settings"]),
            html.Cell(str(row["seeds"]), value=row["seeds"]),
        ]
        for row in rows
    ]
    return html.table(headers, cells)


def _mean(row: Row, key: str, spec: str, unit: float = 1) -> html.Cell:
    if row[key] is None:
        return html.Cell("–")
    spread = row[f"{key}_std"]
    note = f"± {spread / unit:{spec.lstrip('+')}}" if spread else ""
    return html.Cell(f"{row[key] / unit:{spec}}", note, row[key])


def _size(mean: float | None) -> html.Cell:
    return html.Cell("–") if mean is None else html.Cell(in_mb(round(mean)) if mean else "0", value=mean)


def _trials(results: Sequence[Result]) -> str:
    trials: dict[str, list[Row]] = next((result["trials"] for result in results if result["trials"]), {})
    if not trials:
        return ""
    headers = [
        html.Header("Method", number=False),
        html.Header("Budget"),
        html.Header("Settings", number=False),
        html.Header("Valid AUC"),
        html.Header("Embeddings"),
        html.Header("Taken", number=False),
    ]
    cells = [
        [
            html.Cell(method),
            html.Cell(budget_name(row["budget"]), value=row["budget"] or 2.0),
            html.Cell(settings_of(row).in_words()),
            html.Cell(trial_score(row), value=row.get("valid_auc", 0.0)),
            html.Cell(human_bytes(row["serving_bytes"]) if "serving_bytes" in row else "–"),
            html.Cell("yes" if number == best_trial(rows) else ""),
        ]
        for method, rows in trials.items()
        for number, row in enumerate(rows)
    ]
    return html.section("Settings tried", html.table(headers, cells), note=_TRIALS_NOTE)
