"""A sweep as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

from recsys_emb.sizes import MB, human_bytes
from recsys_emb.sweep.results import Result, Row, best_trial, by_method, points, settings_of

CSV_COLUMNS = (
    *("method", "budget", "settings", "seeds", "auc", "auc_std", "lost", "lost_std", "valid_auc", "logloss"),
    *("serving_bytes", "vocabulary_bytes", "dense_bytes", "served_bytes", "ratio", "training_bytes", "train_seconds"),
    *("trainings", "least_bytes"),
)


def csv_table(rows: Sequence[Row]) -> str:
    """The points as CSV, a figure that there is not as an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(results: Sequence[Result]) -> list[str]:
    """AUC by method and budget, memory, and the settings that were tried, as lines."""
    rows = points(results)
    lines = [
        *grid("test AUC", rows, auc_cell),
        "",
        *grid("MB: embeddings / with vocabularies / with the network", rows, bytes_cell),
        "",
        "Vocabularies count where the method needs the list of ids; hashing ones do without.",
    ]
    tried = trials_table(next((result["trials"] for result in results if result["trials"]), {}))
    return [*lines, *(["", *tried] if tried else [])]


def grid(title: str, rows: Sequence[Row], cell: Callable[[Row | None], str]) -> list[str]:
    """A line a method, a column a budget."""
    budgets = budgets_of(rows)
    lines = [
        f"| {title} | own size | " + " | ".join(map(budget_name, budgets)) + " |",
        "|---|" + "---|" * (1 + len(budgets)),
    ]
    for at in by_method(rows).values():
        cells = [cell(at.get(budget)) for budget in (None, *budgets)]
        lines.append(f"| {method_name(at)} | {' | '.join(cells)} |")
    return lines


def budgets_of(rows: Sequence[Row]) -> list[float]:
    """The largest first."""
    return sorted({row["budget"] for row in rows if row["budget"] is not None}, reverse=True)


def budget_name(budget: float | None) -> str:
    """``"1/10"``, or the figure where it is not one over a whole number."""
    if budget is None:
        return "own size"
    return f"1/{1 / budget:.0f}" if abs(1 / budget - round(1 / budget)) < 1e-9 else f"{budget:g}"


def method_name(at: Mapping[float | None, Row]) -> str:
    """Of a method's points: its name, with the trainings that it takes, where they are several."""
    trainings = max(row["trainings"] for row in at.values())
    return next(iter(at.values()))["method"] + (f" ({trainings} trainings)" if trainings > 1 else "")


def auc_cell(row: Row | None) -> str:
    """``AUC ± spread (ratio)`` of one method and budget, and how many seeds where some have no figure."""
    if row is None or row["auc"] is None:
        return out_of_reach(row)
    spread = f" ± {row['auc_std']:.4f}" if row["auc_std"] is not None else ""
    some = f", {row['seeds']} of {row['of_seeds']} seeds" if row["seeds"] < row["of_seeds"] else ""
    return f"{row['auc']:.4f}{spread} ({row['ratio']:.3f}{some})"


def bytes_cell(row: Row | None) -> str:
    """Megabytes served: the embeddings, with the vocabularies, and with the rest of the model."""
    if row is None or row["auc"] is None:
        return out_of_reach(row)
    sizes = [row["serving_bytes"]]
    for key in ("vocabulary_bytes", "dense_bytes"):
        sizes += [] if row[key] is None else [sizes[-1] + row[key]]
    return " / ".join(f"{size / MB:.3f}" for size in sizes)


def out_of_reach(row: Row | None) -> str:
    """Of a cell without figures: why."""
    if row is None:
        return "-"
    least = row["least_bytes"]
    return "out of reach" if least is None else f"out of reach (least {human_bytes(least)})"


def trials_table(trials: dict[str, list[Row]]) -> list[str]:
    """The settings that each method was offered, those that it took in bold; nothing where none had a choice."""
    if not trials:
        return []
    most = max(map(len, trials.values()))
    lines = ["| settings tried: validation AUC |" + " |" * most, "|---|" + "---|" * most]
    for method, rows in trials.items():
        cells = [f"{settings_of(row).in_words()}: {trial_score(row)}" for row in rows]
        best = best_trial(rows)
        cells[best] = f"**{cells[best]}**" if "valid_auc" in rows[best] else cells[best]
        budget = rows[0]["budget"]
        where = "" if budget is None else f" at {budget_name(budget)}"
        lines.append(f"| {method}{where} | {' | '.join([*cells, *[''] * (most - len(cells))])} |")
    return lines


def trial_score(row: Row) -> str:
    """The validation AUC of a choice."""
    return f"{row['valid_auc']:.4f}" if "valid_auc" in row else "out of reach"
