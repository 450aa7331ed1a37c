"""``results/sweep/README.md`` and its plots, from the JSON files beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from statistics import mean, stdev
from typing import Any

from run import HERE
from sweep_methods import METHODS

from recsys_emb.report.figure import png
from recsys_emb.report.plots import memory_auc
from recsys_emb.sizes import MB

EXPERIMENTS = ("movielens-1m/deepfm", "movielens-1m/autoint_small", "synthetic-5m/deepfm")
RESULTS = HERE / "results" / "sweep"

Row = dict[str, Any]


def write_tables() -> None:
    lines = [
        "# Memory against AUC",
        "",
        "Made by `python experiments/sweep.py` (with RECSYS_EMB_DATA set). Test AUC, mean ± standard deviation over "
        "the seeds, and the embeddings' bytes relative to the full table. Each method's own options were chosen on the "
        "validation split of one seed, out of at most three (below). [What the figures say](FINDINGS.md).",
    ]
    for experiment in EXPERIMENTS:
        name = experiment.replace("/", "-")
        results = [json.loads(p.read_text()) for p in sorted(RESULTS.glob(f"{name}-[0-9]*.json"))]
        if not results:
            continue
        rows = [row for result in results for row in relative(result["rows"])]
        lines += ["", f"## {experiment}, seeds {', '.join(str(r['seed']) for r in results)}", ""]
        lines += [*grid("test AUC", rows, auc_cell), ""]
        lines += grid("MB: embeddings / with vocabularies / and network", rows, bytes_cell)
        lines += ["", "Vocabularies count where the method needs the list of ids; hashing ones do without.", ""]
        for suffix, label in (("", None), ("-with-vocabularies", "Embeddings and the vocabularies that they need")):
            plot(f"{name}{suffix}", rows, label)
            lines += [f"![AUC against bytes]({name}{suffix}.png)"]
        lines += ["", *trials_table(results[0]["trials"])]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n")


def relative(rows: list[Row]) -> list[Row]:
    """With ``ratio`` to the full table of the experiment's width: a smaller D is not its own measure."""
    whole = next(r["serving_bytes"] for r in rows if r["method"] == "full")
    return [{**r, "ratio": r["serving_bytes"] / whole} if "serving_bytes" in r else r for r in rows]


def grid(title: str, rows: list[Row], cell: Callable[[list[Row], int], str]) -> list[str]:
    """Markdown: a line a method, a column a budget."""
    budgets = sorted({r["budget"] for r in rows if r["budget"] is not None}, reverse=True)
    seeds = sum(r["method"] == "full" for r in rows)
    lines = [
        f"| {title} | own size | " + " | ".join(f"1/{1 / b:g}" for b in budgets) + " |",
        "|---|" + "---|" * (1 + len(budgets)),
    ]
    for method in METHODS:
        mine = [r for r in rows if r["method"] == method.name]
        cells = [cell([r for r in mine if r["budget"] == budget], seeds) for budget in (None, *budgets)]
        trainings = max((r.get("trainings", 1) for r in mine), default=1)
        lines.append(f"| {method.name}{f' ({trainings} trainings)' * (trainings > 1)} | {' | '.join(cells)} |")
    return lines


def auc_cell(rows: list[Row], seeds: int) -> str:
    """``AUC ± spread (ratio)`` of one method and budget, and how many seeds where not all have been run."""
    aucs = [r["auc"] for r in rows if "auc" in r]
    if not aucs:
        return "out of reach" if rows else "-"
    spread = f" ± {stdev(aucs):.4f}" if len(aucs) > 1 else ""
    some = f", {len(aucs)} of {seeds} seeds" if len(aucs) < seeds else ""
    return f"{mean(aucs):.4f}{spread} ({mean(r['ratio'] for r in rows if 'auc' in r):.3f}{some})"


def bytes_cell(rows: list[Row], seeds: int) -> str:
    """Megabytes served, means over the seeds; the last where all are known."""
    made = [r for r in rows if "auc" in r]
    if not made:
        return "out of reach" if rows else "-"
    alone, needed = (mean(r[key] for r in made) / MB for key in ("serving_bytes", "vocabulary_bytes"))
    served = [r.get("served_bytes") for r in made]
    return f"{alone:.3f} / {alone + needed:.3f}" + ("" if None in served else f" / {mean(served) / MB:.3f}")


def trials_table(trials: dict[str, list[Row]]) -> list[str]:
    """The choices that each method was offered, the one that it took in bold."""
    lines = ["| options tried: validation AUC | | | |", "|---|---|---|---|"]
    for method, rows in trials.items():
        best = max(rows, key=lambda r: r.get("valid_auc", 0.0))  # the first of equals, as the sweep takes it
        cells = []
        for row in rows:
            options = {**row["options"], **({"l2": f"x {row['l2']:g}"} if row["l2"] != 1 else {})}
            text = ", ".join(f"{k} {v}" for k, v in options.items()) or "default"
            score = f"{row['valid_auc']:.4f}" if "valid_auc" in row else "out of reach"
            cells.append(f"**{text}: {score}**" if row is best and "valid_auc" in row else f"{text}: {score}")
        budget = rows[0]["budget"]
        where = "" if budget is None else f" at 1/{1 / budget:g}"
        lines.append(f"| {method}{where} | {' | '.join([*cells, *[''] * (3 - len(cells))])} |")
    return lines


def plot(name: str, rows: list[Row], with_vocabularies: str | None) -> None:
    """The plot of ``recsys-emb compare``, of an experiment's figures; the bytes may be those with vocabularies."""
    groups: dict[tuple[str, float | None], list[Row]] = {}
    for row in rows:
        if "auc" in row:
            groups.setdefault((row["method"], row["budget"]), []).append(row)
    keys = ("serving_bytes", "vocabulary_bytes") if with_vocabularies else ("serving_bytes",)
    means = [
        {
            "model": name.removesuffix("-with-vocabularies").rsplit("-", 1)[1],
            "backend": method,
            "serving_bytes": mean(sum(r[key] for key in keys) for r in group),
            "auc": mean(r["auc"] for r in group),
            "auc_std": stdev(r["auc"] for r in group) if len(group) > 1 else None,
        }
        for (method, _), group in groups.items()
    ]
    ax = memory_auc(means)
    if with_vocabularies:
        ax.set_xlabel(f"{with_vocabularies} (MB, log scale)")
    (RESULTS / f"{name}.png").write_bytes(png(ax))
