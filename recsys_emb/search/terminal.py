"""What a search says in a terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial
from rich.console import Console
from rich.table import Table
from rich.text import Text

from recsys_emb.report import worse_than_the_mean
from recsys_emb.search.naming import drawn, method_of
from recsys_emb.search.objective import COMPLETE, CONFIG, DUPLICATE, INFEASIBLE, OUTCOME, RUN, SCORE, name_of
from recsys_emb.sizes import human_bytes
from recsys_emb.training.main_metric import main_metric_in


def quiet(study: Study, trial: FrozenTrial) -> None:
    """Says nothing of a finished trial."""


def tell(study: Study, trial: FrozenTrial) -> None:
    """One line on a finished trial, on stderr: its figures, its method, what was drawn. A score is of a candidate
    without a run."""
    attrs = trial.user_attrs
    if attrs[OUTCOME] == DUPLICATE:
        return  # hundreds, where little is left to draw
    main = main_metric_in(attrs.get(CONFIG, {}))
    parts = [attrs[OUTCOME]]
    if attrs[OUTCOME] == COMPLETE:
        parts = [f"valid {main.title} {main.of(attrs):.5f}" if RUN in attrs else f"score {attrs[SCORE]:.5f}"]
    if attrs.get("serving_bytes") is not None and attrs[OUTCOME] != INFEASIBLE:  # whose message says it
        parts.append(human_bytes(attrs["serving_bytes"]))
    parts += [attrs["message"]] if "message" in attrs else [f"{attrs['seconds']:.1f} s"]
    what = [method_of(attrs[CONFIG]), drawn(trial.params)] if CONFIG in attrs else []
    print("; ".join(filter(None, (f"{name_of(trial)}: {', '.join(parts)}", *what))), file=sys.stderr)


def print_budgets(summary: dict[str, Any], folder: Path) -> None:
    """What each of several budgets costs."""
    main, full = main_metric_in(summary), summary["full"]
    title = f"{', '.join(summary['models'])} on {summary['dataset']}, what each budget costs"
    table = _table(title, f"valid {main.title}", f"test {main.title}", "loss", "bytes", "of full")
    if full is not None:
        figures = (f"{full[f'valid_{main.key}']:.5f}", f"{main.of(full['test']):.5f}", "")
        table.add_row("full tables", *figures, *_sizes(full, summary))
    for budget in summary["budgets"]:
        winner = budget["winner"]
        test, lost = main.of(winner["test"]), ""
        if full is not None:
            lost = f"{main.score(main.of(full['test'])) - main.score(test):.5f}"
        figures = (f"{winner[f'valid_{main.key}']:.5f}", f"{test:.5f}", lost)
        table.add_row(_told(f"{budget['at']}: {winner['name']}", winner), *figures, *_sizes(winner, summary))
    Console().print(table)
    for budget in summary["budgets"]:
        if budget["lead"] is not None:
            print(f"{budget['at']}: {_lead(budget['lead'], main.title)}")
    for at, reason in summary["missed"].items():
        print(f"{at}: no winner; {reason}")
    print(f"recsys-emb train {folder}/BUDGET/best.yaml trains a winner again; {folder}/report.html shows them")


def _told(name: str, entry: dict[str, Any]) -> Text:
    """A name with its method and settings below."""
    told = Text(name)
    told.append("".join(f"\n{text}" for text in (entry["method"], entry["settings"]) if text), style="dim")
    return told


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    winner, main = summary["winner"], main_metric_in(summary)
    budget = summary["budget_bytes"]
    within = "any size" if budget is None else f"within {human_bytes(budget)}"
    title = f"{', '.join(summary['models'])} on {summary['dataset']}, {within}"
    table = _table(title, f"valid {main.title}", f"test {main.title}", "bytes", "of full")
    shown = {row["name"]: row for row in (winner, *summary["baselines"])}
    for name, row in shown.items():
        mark = " (winner)" if row["name"] == winner["name"] else ""
        done = row["test"] is not None
        figures = (row["state"], "")
        if done:
            figures = (f"{row[f'valid_{main.key}']:.5f}", f"{main.of(row['test']):.5f}")
        table.add_row(_told(f"{name}{mark}", row), *figures, *_sizes(row, summary))
    console = Console()
    console.print(table)
    if summary["mode"] == "pareto":
        console.print(_front(summary))
    counts = ", ".join(f"{n} {state}" for state, n in summary["states"].items())
    file = "candidates" if summary["scored"] else "trials"
    print(f"{counts}; {folder}/{file}.parquet has them all")
    for note in notes(summary):
        print(note)
    print(f"recsys-emb train {folder}/best.yaml trains the winner again")


def _front(summary: dict[str, Any]) -> Table:
    main = main_metric_in(summary)
    table = _table("Front: none beats these in both", f"valid {main.title}", "bytes", "of full")
    for row in summary["front"]:
        table.add_row(row["name"], f"{row[f'valid_{main.key}']:.5f}", *_sizes(row, summary))
    return table


def _table(title: str, *figures: str) -> Table:
    """An empty table with a column of names and one for each figure."""
    table = Table("", title=title, title_justify="left")
    for heading in figures:
        table.add_column(heading, justify="right")
    return table


def _sizes(row: dict[str, Any], summary: dict[str, Any]) -> tuple[str, str]:
    size = row["serving_bytes"]
    return ("-", "-") if size is None else (human_bytes(size), f"{size / summary['full_bytes']:.1%}")


def _lead(lead: dict[str, Any], title: str) -> str:
    seeds, spread = len(lead["seeds"]), ""
    if lead["std"] is not None:
        spread = f" ± {lead['std']:.5f} over {seeds} seeds"
    elif lead["stderr"] is not None:
        spread = f" ± {lead['stderr']:.5f} (standard error over rows; --seeds gives that over trainings)"
    return f"test {title} of {lead['trial']} above that of {lead['baseline']}: {lead['mean']:+.5f}{spread}"


def notes(summary: dict[str, Any]) -> list[str]:
    """What a reader of the result should not overlook."""
    found = []
    winner = summary["winner"]
    baseline, ne = winner["baseline"], winner["test"].get("ne")
    if ne is not None and ne > 1:
        found.append(f"the winner: {worse_than_the_mean(ne)}")
    if baseline and COMPLETE in summary["states"]:
        found.append(f"no trial beat the baseline {baseline}: more trials, or it is what to use")
    if summary["lead"] is not None:
        found.append(_lead(summary["lead"], main_metric_in(summary).title))
    if summary["trials"] < summary["asked"]:
        found.append(
            f"{summary['asked']} trials were asked for, the space gave {summary['trials']}: in the end all that was "
            "drawn was over the budget, or tried before"
        )
    if summary["hypervolume"] is not None:
        main = main_metric_in(summary)
        found.append(f"the winner is the smallest within {summary['tolerance']} of the best {main.title}")
        above = f"{main.title} above {main.chance}"
        found.append(f"hypervolume {summary['hypervolume']:.5f} ({above} times bytes below full)")
    correlation = summary["correlation"]
    if summary["scored"] and correlation is None:
        found.append("too few candidates were carried out to say whether scores rank them rightly: raise retrain")
    if correlation is not None:
        rho = correlation["spearman"]
        title, figure = main_metric_in(summary).title, "-" if rho is None else f"{rho:.2f}"
        text = f"rank correlation of score and {title} when carried out: {figure} over {correlation['n']} candidates"
        found.append(text if correlation["supported"] else f"{text}: too low for the scores to have guided this search")
    return found
