"""The page of a search at several budgets: what each costs, which fields pay for it, and the front of all trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys_emb.files import read_json, write_text
from recsys_emb.report import html
from recsys_emb.report.columns import worse_than_the_mean
from recsys_emb.report.frames import load_trials
from recsys_emb.sizes import MB, human_bytes
from recsys_emb.training.main_metric import MainMetric, main_metric_in

Summary = Mapping[str, Any]


def searches_page(out: str | Path) -> Path:
    """Writes ``report.html`` of a search at several budgets, from its ``search.json`` and ``trials.parquet``."""
    folder = Path(out)
    summary = read_json(folder / "search.json")
    drawn = ", ".join(f"{number:,} {state}" for state, number in summary["states"].items())
    page = html.page(
        f"Search {summary['study']}",
        f"{', '.join(summary['models'])} on {summary['dataset']}, {len(summary['budgets'])} budgets: {drawn}",
        html.section("What each budget costs", *_warnings(summary), _costs(summary), note=_note(summary)),
        html.section("Front", _front(folder), note="Of all that was trained for any budget."),
        html.section(
            "Which fields pay", _fields(summary), note="Bytes of each winner's tables, and what a vector is made of."
        ),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _note(summary: Summary) -> str:
    text = "The validation split chose each winner; the test split was read once, for the winners and their baselines."
    if summary["full"] is not None:
        text += " The loss is to the full tables of the base's settings, same seed."
    return " ".join([text, *(f"No winner at {at}: {reason}." for at, reason in summary["missed"].items())])


def _warnings(summary: Summary) -> list[str]:
    worse = [(b["at"], b["winner"]["test"].get("ne")) for b in summary["budgets"]]
    return [html.warning(f"The winner at {at}: {worse_than_the_mean(ne)}.") for at, ne in worse if ne and ne > 1]


def _costs(summary: Summary) -> str:
    main, full = main_metric_in(summary), summary["full"]
    headers = [
        html.Header("Budget", "as it was given; its page", number=False),
        html.Header("Winner", "and its method and settings", number=False),
        html.Header(f"Test {main.title}"),
        html.Header("Loss", "of the test metric, to the full tables"),
        html.Header(f"Validation {main.title}"),
        html.Header("Serving (MB)"),
        html.Header("Of full", "serving size over that of the full tables"),
        html.Header("Lead", "of the best trial over the best baseline on the test split", number=False),
    ]
    rows = []
    if full is not None:
        link = (full["run"], f"{full['run']}/report.html")
        test, valid = main.of(full["test"]), full[f"valid_{main.key}"]
        figures = [html.Cell(f"{test:.4f}", value=test), html.Cell("–"), html.Cell(f"{valid:.4f}", value=valid)]
        cells = [html.Cell("any"), html.Cell("full tables", links=[link]), *figures, *_sizes(full, summary)]
        rows.append([*cells, html.Cell("–")])
    rows += [_cost(budget, summary, main) for budget in summary["budgets"]]
    return html.table(headers, rows)


def _cost(budget: Summary, summary: Summary, main: MainMetric) -> list[html.Cell]:
    winner, full = budget["winner"], summary["full"]
    test, valid = main.of(winner["test"]), winner[f"valid_{main.key}"]
    lost = None if full is None else main.score(main.of(full["test"])) - main.score(test)
    about = ", ".join(filter(None, (winner["method"], winner["settings"])))
    return [
        html.Cell(budget["at"], human_bytes(budget["budget_bytes"]), links=[("page", f"{budget['at']}/report.html")]),
        html.Cell(winner["name"], about),
        html.Cell(f"{test:.4f}", value=test),
        html.Cell("–") if lost is None else html.Cell(f"{lost:.4f}", value=lost),
        html.Cell(f"{valid:.4f}", value=valid),
        *_sizes(winner, summary),
        html.Cell(*lead_in_words(budget["lead"]) if budget["lead"] else ("–",)),
    ]


def lead_in_words(lead: Summary) -> tuple[str, str]:
    """``"+0.0012 ± 0.0004"``, and over whom and how often."""
    several = lead["std"] is not None
    error = lead["std"] if several else lead["stderr"]
    spread = "" if error is None else f" ± {error:.4f}"
    of = f"over {len(lead['seeds'])} seeds" if several else "one seed, standard error over rows"
    return f"{lead['mean']:+.4f}{spread}", f"{lead['trial']} over {lead['baseline']}, {of}"


def _sizes(entry: Summary, summary: Summary) -> list[html.Cell]:
    size = entry["serving_bytes"]
    return [html.Cell(f"{size / MB:,.3f}", value=size), html.Cell(f"{size / summary['full_bytes']:.2%}", value=size)]


def _front(folder: Path) -> str:
    from recsys_emb.report import search_plots  # matplotlib takes a while to import
    from recsys_emb.report.figure import svg

    caption = "Validation metric against serving size. No trial beats those on the front in both."
    drawn = svg(search_plots.pareto(load_trials(folder / "trials.parquet")), caption)
    return html.figures(html.figure(drawn, caption))


def _fields(summary: Summary) -> str:
    """Bytes of each table at each budget."""
    budgets = summary["budgets"]
    by_budget = [{t["name"]: t for t in b["winner"]["tables"]} for b in budgets]
    headers = [
        html.Header("Table", number=False),
        html.Header("Ids"),
        *(html.Header(b["at"], "bytes of the winner's table at this budget") for b in budgets),
    ]
    names = list(dict.fromkeys(name for tables in by_budget for name in tables))
    return html.table(headers, [_field(name, [tables.get(name) for tables in by_budget]) for name in names])


def _field(name: str, tables: list[Summary | None]) -> list[html.Cell]:
    ids = next((t["ids"] for t in tables if t is not None and t["ids"] is not None), None)
    cells = [
        html.Cell("–") if t is None else html.Cell(f"{t['bytes']:,}", f"{t['form']}, {t['width']} wide", t["bytes"])
        for t in tables
    ]
    return [html.Cell(name), html.Cell("–" if ids is None else f"{ids:,}", value=ids), *cells]
