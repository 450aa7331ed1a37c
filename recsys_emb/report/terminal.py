"""Results as rich tables, for people at a terminal; compare_table.py has the one of many runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from recsys_emb.report.intervals import half_width
from recsys_emb.sizes import human_bytes
from recsys_emb.training.main_metric import main_metric_in


def run_table(report: Mapping[str, Any], folder: Path) -> Table:
    """What a training gave."""
    table, main = _facts(report), main_metric_in(report)
    table.add_row(f"test {main.title}", _with_interval(main.of(report), report.get(f"{main.key}_stderr")))
    if report.get("bayes_auc") is not None:
        table.add_row("gap to Bayes", f"{report['bayes_auc'] - report['auc']:.5f}")
    if report["gauc"] is not None:
        table.add_row("test GAUC", f"{report['gauc']:.5f}")
        if (covered := gauc_coverage(report)) is not None:
            table.add_row("GAUC covers", covered)
    table.add_row("test logloss", f"{report['logloss']:.5f}")
    table.add_row("normalised entropy", f"{report['ne']:.5f}")
    table.add_row("calibration", f"{report['calibration']:.4f}")
    table.add_row("embeddings, served", embedding_size(report))
    table.add_row("with vocabularies and network", human_bytes(report["served_bytes"]))
    table.add_row("training state", human_bytes(report["training_bytes"]))
    table.add_row("peak memory", human_bytes(report["peak_rss_bytes"]))
    table.add_row("training", f"{report['train_seconds']:.1f} s, {report['samples_per_second']:,.0f} rows/s")
    table.add_row("run folder", str(folder))
    return table


def artifact_table(report: Mapping[str, Any], folder: Path) -> Table:
    """What an artifact takes, and how well it predicts."""
    table = _facts(report)
    table.add_row("embeddings", embedding_size(report))
    if report["serving_bytes"] > report["trained_serving_bytes"]:
        smaller = f"{human_bytes(report['trained_serving_bytes'])} without --method"
        table.add_row("[bold red]larger than the run's own[/]", smaller)
    table.add_row("rest of the model", human_bytes(report["dense_bytes"]))
    table.add_row("vocabularies", human_bytes(report["vocabulary_bytes"]))
    if (taken := report.get("taken_for_known")) is not None:
        table.add_row("unknown values taken for known ones", f"{taken:.2%}")
    table.add_row("in all", human_bytes(report["served_bytes"]))
    main = main_metric_in(report)
    if report[main.key] is not None:
        error = report["logit_error"]
        table.add_row(f"test {main.title}", _with_interval(main.of(report), report.get(f"{main.key}_stderr")))
        if (change := report.get("change_from_run")) is not None:
            table.add_row("against the run's", _with_interval(change[main.key], change["stderr"], "+.5f"))
        table.add_row("logits off by", f"{error['max']:.1e} at most, {error['mean']:.1e} on average")
    table.add_row("artifact", str(folder))
    return table


def _facts(report: Mapping[str, Any]) -> Table:
    title = f"{report['model']} with {report['backend']} embeddings on {report['dataset']}"
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    return table


def _with_interval(value: float, stderr: float | None, spec: str = ".5f") -> str:
    """A figure and how far its 95 % interval reaches, where that is known."""
    reach = half_width(stderr)
    return format(value, spec) + ("" if reach is None else f" ± {reach:.5f} (95 %)")


def embedding_size(report: Mapping[str, Any]) -> str:
    """Serving bytes, and the share of full tables where there are any."""
    served = human_bytes(report["serving_bytes"])
    return served if report["ratio"] is None else f"{served} ({report['ratio']:.1%} of full)"


def metrics_table(figures: Mapping[str, Any], what: Path) -> Table:
    """An evaluation of a run or an artifact on a split."""
    return _metrics(figures, f"{what} on {figures['split']}, {figures['rows']:,} rows")


def input_tables(figures: Mapping[str, Any]) -> list[Table]:
    """An evaluation of an artifact on raw rows: the metrics, known and unknown values apart, unknown shares."""
    rejected = f", {figures['rejected']:,} rejected" if figures["rejected"] else ""
    tables = [_metrics(figures, f"{figures['artifact']} on {figures['input']}, {figures['rows']:,} rows{rejected}")]
    if figures["by"]:
        apart = Table("field", "value", "rows", "auc", title="known to training and unknown", title_justify="left")
        for field, parts in figures["by"].items():
            for name, part in parts.items():
                auc = "-" if part["auc"] is None else f"{part['auc']:.5f}"
                apart.add_row(field if name == "known" else "", name, f"{part['rows']:,}", auc)
        tables.append(apart)
    if figures["unknown_share"]:
        shares = Table("field", "unknown values", title_justify="left")
        for field, share in figures["unknown_share"].items():
            shares.add_row(field, f"{share:.1%}")
        tables.append(shares)
    return tables


def _metrics(figures: Mapping[str, Any], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    names = ["auc", "logloss", "ne", "calibration", "gauc"]
    for name in names:
        table.add_column(name, justify="right")
    table.add_row(*("-" if figures[n] is None else f"{figures[n]:.5f}" for n in names))
    if (covered := gauc_coverage(figures)) is not None:
        table.caption = f"gauc: {covered}"
    return table


def gauc_coverage(figures: Mapping[str, Any]) -> str | None:
    """How many users and rows GAUC is of; None without users, or in reports that are older than these figures."""
    if figures.get("gauc_users") is None:
        return None
    users, rows = (f"{figures[f'gauc_{k}']:,} of {figures[k]:,} {k}" for k in ("users", "rows"))
    return f"{users}, {rows} (users with clicks and non-clicks)"


def options_table(kind: str, plugin: Mapping[str, Any]) -> Table | str:
    """One of a registry, option by option."""
    title = f"{kind} {plugin['name']}: {plugin['summary']}"
    if not plugin["options"]:
        return f"{title}; it has no options"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="")
    for heading in ("option", "default", "allowed", "what it does"):
        table.add_column(heading)
    for row in plugin["options"]:
        default = "absent" if row["default"] is None else str(row["default"])
        table.add_row(row["key"], default, row["allowed"], row["description"])
    return table


def plugins_table(kind: str, plugins: Sequence[Mapping[str, Any]]) -> Table:
    """What a registry holds."""
    table = Table(box=None, pad_edge=False)
    for heading in (kind, "what it is", "options"):
        table.add_column(heading)
    for row in plugins:
        table.add_row(row["name"], row["summary"], ", ".join(row["options"]))
    return table
