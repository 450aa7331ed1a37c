"""The page of one search: the winner beside the baselines, history, front, importances, widths, and every trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_emb.errors import UserError
from recsys_emb.files import read_json, write_text
from recsys_emb.report import html
from recsys_emb.report.columns import worse_than_the_mean
from recsys_emb.report.differences import brief, short_names
from recsys_emb.report.frames import load_trials
from recsys_emb.report.runs import load_report
from recsys_emb.report.searches_page import lead_in_words
from recsys_emb.sizes import MB, human_bytes

PARAM = "param:"
_PARAM_COLUMNS = 6  # more parameters than these share one cell, so that the table fits a page

Summary = dict[str, Any]


def search_page(out: str | Path) -> Path:
    """Writes ``report.html`` into the folder of a finished search, from its ``search.json`` and ``trials.parquet``.

    Raises:
        UserError: not the folder of a finished search.
    """
    folder = Path(out)
    if not (folder / "search.json").is_file():
        raise UserError(
            f"search {folder}: not finished (no search.json); continue it with `recsys-emb search --resume`"
        )
    summary = read_json(folder / "search.json")
    trials = load_trials(folder / "trials.parquet")
    candidates = load_trials(folder / "candidates.parquet") if summary["scored"] else None
    page = html.page(
        f"Search {summary['study']}",
        f"{', '.join(summary['models'])} on {summary['dataset']}: {_counts(summary)}",
        html.section("Winner", _warning(summary), html.cards(_cards(summary)), note=_how(summary)),
        html.section("Winner and baselines", _baselines(folder, summary), note=_BASELINES_NOTE),
        html.section(
            "Search",
            _figures(summary, trials, candidates, _searched_widths(folder, summary)),
            note=_what_scores_were_worth(summary),
        ),
        html.section("Trials", _trials(folder, trials), note=_TRIALS_NOTE),
        html.section("Candidates", _trials(folder, candidates), note=_SCORED[summary["scored"]]) if candidates else "",
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


_SCORED = {
    "supernet": "Scored on the supernet.",
    "compressed": "Scored as made of their trained base, before anything is trained on.",
}
"""By what ``search.json`` says of candidates."""
_BASELINES_NOTE = (
    "The validation split decided. The test split was read once, for these rows only. Serving is all that the "
    "embeddings need when served; 1 MB is 1,000,000 bytes. One seed each; `--seeds` trains "
    "the best trial and the best baseline from several."
)
_TRIALS_NOTE = (
    "AUC is of the validation split. Infeasible trials were over the budget by plan and cost nothing; pruned ones were "
    "ended early and show their last AUC."
)


# -- words and figures ------------------------------------------------------------------------------------------------


def _counts(summary: Summary) -> str:
    states = ", ".join(f"{number:,} {state}" for state, number in summary["states"].items())
    return f"{summary['trials']:,} trials ({states})"


def _how(summary: Summary) -> str:
    budget = summary["budget_bytes"]
    within = "AUC against bytes" if budget is None else f"the best AUC within {human_bytes(budget)}"
    scored = {"supernet": ", scored on a supernet", "compressed": ", scored as made of a trained base"}
    scoring = scored.get(summary["scored"], "")
    pruner = "" if summary["pruner"] == "none" else f", pruner {summary['pruner']}"
    text = f"Searched: {within}; sampler {summary['sampler']}{pruner}, seed {summary['seed']}{scoring}."
    if summary["winner"]["baseline"]:
        text += f" No trial beat the baseline {summary['winner']['baseline']}, which is the winner."
    return text


def _warning(summary: Summary) -> str:
    ne = summary["winner"]["test"].get("ne")
    return "" if ne is None or ne <= 1 else html.warning(f"The winner: {worse_than_the_mean(ne)}.")


def _cards(summary: Summary) -> list[tuple[str, str, str]]:
    winner = summary["winner"]
    size = winner["serving_bytes"]
    shares = [f"{size / summary['full_bytes']:.2%} of the full tables"]
    if summary["budget_bytes"] is not None:
        shares.append(f"{size / summary['budget_bytes']:.1%} of the budget")
    cards = [
        ("Method", winner["method"], winner["settings"]),
        ("Test AUC", f"{winner['test']['auc']:.4f}", winner["name"]),
        ("Validation AUC", f"{winner['valid_auc']:.4f}", "what decided"),
        ("Serving", human_bytes(size), "; ".join(shares)),
    ]
    if summary["lead"] is not None:
        cards.append(("Lead on test", *lead_in_words(summary["lead"])))
    if summary["hypervolume"] is not None:
        note = "of the front, between AUC 0.5 at the full tables' bytes and AUC 1 at none"
        cards.append(("Hypervolume", f"{summary['hypervolume']:.4f}", note))
    return cards


def _baselines(folder: Path, summary: Summary) -> str:
    headers = [
        html.Header("Name", "trial, or known setting", number=False),
        html.Header("Method", "model / embedding backend, and what was drawn", number=False),
        html.Header("Test AUC"),
        html.Header("Test logloss", "nats"),
        html.Header("Validation AUC"),
        html.Header("Serving (MB)"),
        html.Header("Of full", "serving size over that of the full tables of the search's base"),
        html.Header("Note", number=False),
    ]
    winner = summary["winner"]
    entries = [winner, *(b for b in summary["baselines"] if b["name"] != winner["name"])]
    cells = [
        [
            html.Cell(entry["name"]),
            html.Cell(entry["method"] or "–", entry["settings"]),
            _figure((entry["test"] or {}).get("auc"), ".4f"),
            _figure((entry["test"] or {}).get("logloss"), ".4f"),
            _figure(entry["valid_auc"], ".4f"),
            _figure(entry["serving_bytes"], ",.3f", MB),
            _figure(entry["serving_bytes"], ".2%", summary["full_bytes"]),
            _outcome(folder, "winner" if entry is winner else entry["state"], entry),
        ]
        for entry in entries
    ]
    return html.table(headers, cells)


def _what_scores_were_worth(summary: Summary) -> str:
    """How far the scores of candidates foretold what their runs give; nothing where all were trained."""
    if not summary["scored"]:
        return ""
    found = summary["correlation"]
    if found is None or found["spearman"] is None:
        return "Too few candidates were carried out to say whether scores rank them rightly."
    verdict = (
        "scores rank candidates much as their runs do"
        if found["supported"]
        else "scores do not foretell how runs rank, so the choice was a guess; carry out more candidates (retrain)"
    )
    text = f"Spearman's rank correlation of score and AUC is {found['spearman']:.2f} over {found['n']} "
    return f"{text}candidates that were carried out: {verdict}."


def _searched_widths(folder: Path, summary: Summary) -> list[dict[str, Any]]:
    """Ids and widths of the winner's tables, where it has a width for each."""
    winner = summary["winner"]
    if not winner["widths"]:
        return []
    tables = load_report(folder / winner["run"]).get("tables") or []
    return [{**table, "width": winner["widths"].get(table["name"])} for table in tables]


def _figures(
    summary: Summary,
    trials: Sequence[dict[str, Any]],
    candidates: Sequence[dict[str, Any]] | None,
    tables: Sequence[dict[str, Any]],
) -> str:
    shares = summary.get("importances") or {}
    history = _drawn("history", trials) if candidates is None else _drawn("history", candidates, "score")
    parts = [
        history,
        _drawn("pareto", trials, summary["budget_bytes"]),
        _drawn("scores", trials) if candidates is not None else "",
        _drawn("importances", shares) if shares else "",
        _drawn("widths", tables) if tables else "",
    ]
    return html.figures(*filter(None, parts))


_CAPTIONS = {
    "history": "Each trial in its turn, and the best so far.",
    "pareto": "Validation AUC against serving size. No trial beats those on the front in both.",
    "importances": "How much each parameter matters for the objective (PED-ANOVA), as a share of all.",
    "widths": "Widths of the winner's tables against the sizes of their vocabularies.",
    "scores": "Score and AUC of the candidates that were carried out.",
}


def _drawn(name: str, *arguments: Any) -> str:
    """The plot of that name in ``search_plots``, with its caption."""
    from recsys_emb.report import search_plots  # matplotlib takes a while to import
    from recsys_emb.report.figure import svg

    return html.figure(svg(getattr(search_plots, name)(*arguments), _CAPTIONS[name]), _CAPTIONS[name])


def _trials(folder: Path, trials: Sequence[dict[str, Any]]) -> str:
    params = sorted({key for row in trials for key in row if key.startswith(PARAM)})
    short = short_names([key.removeprefix(PARAM) for key in params])
    apart = len(params) <= _PARAM_COLUMNS
    scored = any(row["score"] is not None for row in trials)
    headers = [
        html.Header("Trial", "its number, or the baseline that it is", number=False),
        html.Header("State", number=False),
        html.Header("AUC", "validation split"),
        *([html.Header("Score", "validation AUC of the candidate before it was carried out")] if scored else []),
        html.Header("Serving (MB)"),
        html.Header("Time (s)", "of training"),
        *(
            html.Header(brief(short[key.removeprefix(PARAM)]), key.removeprefix(PARAM), _is_number(key, trials))
            for key in params
            if apart
        ),
        *([] if apart else [html.Header("Parameters", number=False)]),
        html.Header("Note", "front or winner; what went wrong; run folder", number=False),
    ]
    cells = [
        [
            html.Cell(row["enqueued"] or str(row["number"])),
            html.Cell(row["state"]),
            _figure(row["auc"], ".4f"),
            *([_figure(row["score"], ".4f")] if scored else []),
            _figure(row["serving_bytes"], ",.3f", MB),
            _figure(row["seconds"], ",.1f"),
            *(_value(row[key]) for key in params if apart),
            *([] if apart else [html.Cell("", _all_values(row, short))]),
            _outcome(folder, _marks(row), row),
        ]
        for row in trials
    ]
    return html.table(headers, cells)


def _outcome(folder: Path, mark: str, row: Mapping[str, Any]) -> html.Cell:
    """What became of a trial; its run, with a link where there is a page of it, or what went wrong."""
    run = row["run"]
    if row["message"] or not run:
        return html.Cell(mark, row["message"] or "")
    page = Path(run) / "report.html"
    return html.Cell(mark, links=[(run, str(page) if (folder / page).is_file() else None)])


def _marks(row: dict[str, Any]) -> str:
    marks = ["winner" if row["winner"] else None, "on the front" if row["pareto"] else None]
    return ", ".join(filter(None, marks))


def _all_values(row: dict[str, Any], short: Mapping[str, str]) -> str:
    given = {name: row[f"{PARAM}{key}"] for key, name in short.items()}
    return ", ".join(f"{name} {_value(value).text}" for name, value in given.items() if value is not None)


def _is_number(key: str, trials: Sequence[dict[str, Any]]) -> bool:
    values = [row[key] for row in trials if row[key] is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _value(value: Any) -> html.Cell:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return html.Cell(f"{value:.4g}" if isinstance(value, float) else f"{value:,}", value=value)
    return html.Cell("–" if value is None else str(value))


def _figure(value: float | None, spec: str, unit: float = 1) -> html.Cell:
    if value is None:
        return html.Cell("–")
    return html.Cell(format(value if unit == 1 else value / unit, spec), value=value)
