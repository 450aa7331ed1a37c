"""The page of one run: headline figures, sizes, learning curve, calibration, what was unknown, tables, config."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recsys_emb.files import read_json, write_text
from recsys_emb.report import html
from recsys_emb.report.columns import BY_KEY, SIZES_NOTE
from recsys_emb.report.differences import label
from recsys_emb.report.intervals import half_width
from recsys_emb.report.quality import Slice, by_user, deciles
from recsys_emb.report.runs import Report, load_report
from recsys_emb.report.terminal import gauc_coverage
from recsys_emb.sizes import human_bytes
from recsys_emb.training.run_files import PREDICTIONS, read_metrics
from recsys_emb.training.stored_predictions import StoredPredictions


def run_page(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a finished run, ``report.html`` in its folder unless ``out`` names another file.

    Raises:
        UserError: not a finished run.
    """
    run = Path(run_dir)
    path = run / "report.html" if out is None else Path(out)
    report, events = load_report(run), read_metrics(run)
    env = read_json(run / "env.json") if (run / "env.json").is_file() else {}
    predictions = StoredPredictions.load(run / PREDICTIONS)
    write_text(
        path,
        html.page(
            report["run"],
            f"{label(report)} on {report['dataset']}, seed {report['seed']}",
            html.section("Quality on the test split", html.cards(_quality(report)), note=_bayes_sentence(report)),
            html.section("Memory", html.cards(_sizes(report)), note=SIZES_NOTE),
            html.section("Training", html.cards(_figures(report, "samples_per_second", "train_seconds", "epochs"))),
            _curves(report, events, predictions),
            _known_and_unknown(report, predictions),
            _tables(report),
            html.figures(*_written(run, env)),
        ),
    )
    return path


def _quality(report: Report) -> list[tuple[str, str, str]]:
    reach, covered = half_width(report.get("auc_stderr")), gauc_coverage(report)
    more = {"AUC": "" if reach is None else f"± {reach:.4f} (95 %): ", "GAUC": f"{covered}: " if covered else ""}
    figures = _figures(report, "auc", "gauc", "bayes_gap", "logloss", "ne", "calibration")
    return [(title, figure, more.get(title, "") + meaning) for title, figure, meaning in figures]


def _figures(report: Report, *keys: str) -> list[tuple[str, str, str]]:
    return [(BY_KEY[k].title, BY_KEY[k].text(report), BY_KEY[k].meaning) for k in keys if report.get(k) is not None]


def _bayes_sentence(report: Report) -> str:
    if report["bayes_gap"] is None:
        return ""
    return (
        f"The best AUC that any model can reach on this data is {report['bayes_auc']:.4f}; "
        f"this run is {report['bayes_gap']:.4f} below it."
    )


def _sizes(report: Report) -> list[tuple[str, str, str]]:
    titles = {
        "serving_bytes": "Serving",
        "training_bytes": "Training",
        "peak_rss_bytes": "Peak RSS",
        "vocabulary_bytes": "Vocabulary",
        "served_bytes": "Artifact",
    }
    sizes = [
        (title, human_bytes(report[key]), f"{report[key]:,} bytes")
        for key, title in titles.items()
        if report.get(key) is not None
    ]
    if report.get("full_bytes") and report.get("ratio") is not None:
        sizes.append(
            ("Of full tables", f"{report['ratio']:.2%}", f"full fp32 tables: {human_bytes(report['full_bytes'])}")
        )
    return sizes


def _curves(report: Report, events: list[dict[str, Any]], predictions: StoredPredictions | None) -> str:
    """The learning curve beside the calibration, as far as there is something to draw."""
    if not events and predictions is None:
        return ""
    from recsys_emb.report import plots  # matplotlib takes a while to import
    from recsys_emb.report.figure import svg

    drawn = []
    if events:
        axes = plots.learning_curves(events, best_step=report.get("best_step"))
        caption = "Loss of training batches and of the validation split, and validation AUC. The weights of the marked "
        drawn.append(html.figure(svg(axes[0], "Learning curve"), f"{caption}evaluation were kept."))
    if predictions is not None:
        ax = plots.calibration(deciles(predictions))
        caption = (
            "Calibration on the test split: its rows in ten groups by rising prediction, each with the share that was "
            "clicked and its 95 % interval. Above the dashed line the model predicts too few clicks, below too many."
        )
        drawn.append(html.figure(svg(ax, "Calibration by decile"), caption))
    return html.section("Learning and calibration", html.figures(*drawn))


def _known_and_unknown(report: Report, predictions: StoredPredictions | None) -> str:
    """Test rows of users that training has seen and of others, and the values that it has not seen by field."""
    users = {} if predictions is None else by_user(predictions)
    shares = report.get("unknown_share") or {}
    tables = []
    if users:
        tables.append(_users(users))
    unknown = sorted(((field, share) for field, share in shares.items() if share), key=lambda item: -item[1])
    if unknown:
        headers = [html.Header("Field", number=False), html.Header("Unknown values", "share of the test split's")]
        tables.append(
            html.table(headers, [[html.Cell(f), html.Cell(f"{share:.2%}", value=share)] for f, share in unknown])
        )
    if not tables and not shares:
        return ""
    note = "Values that the training split does not have, or too seldom for the vocabulary, share one vector a field."
    if shares:
        rest = len(shares) - len(unknown)
        note += f" {rest} of {len(shares)} fields have none in the test split." if rest else ""
    return html.section("Known and unknown values", html.figures(*tables), note=note)


def _users(users: Mapping[str, Slice]) -> str:
    headers = [
        html.Header("Users", "known: in the training split", number=False),
        html.Header("Rows", "of the test split"),
        html.Header("Click rate"),
        html.Header("AUC"),
        html.Header("±\u00a095\u00a0%", "half of the AUC's 95 % interval"),
        html.Header("Logloss", "nats"),
    ]
    cells = [
        [
            html.Cell(name),
            _number(own.rows),
            html.Cell(f"{own.click_rate:.4f}", value=own.click_rate),
            _figure(own.auc),
            _figure(half_width(own.auc_stderr)),
            _figure(own.logloss),
        ]
        for name, own in users.items()
    ]
    return html.table(headers, cells)


def _written(run: Path, env: dict[str, Any]) -> list[str]:
    """The config and the environment as they stand in the folder."""
    config = html.section("Config", html.preformatted((run / "config.yaml").read_text(encoding="utf-8")))
    return [config, *([html.section("Environment", html.preformatted(json.dumps(env, indent=2)))] if env else [])]


def _tables(report: Report) -> str:
    tables = report.get("tables") or []
    if not tables:
        return ""
    from recsys_emb.report import plots
    from recsys_emb.report.figure import svg

    headers = [
        html.Header("Table", "embedding table", number=False),
        html.Header("Ids", "size of the vocabulary"),
        html.Header("Rows", "rows stored"),
        html.Header("Width", "columns stored, the first-order weight among them"),
        html.Header("Serving (bytes)", "stored bytes when served"),
        html.Header("Form", "how it is stored", number=False),
    ]
    cells = [
        [
            html.Cell(str(t["name"])),
            *(_number(t.get(key)) for key in ("ids", "rows", "width", "bytes")),
            html.Cell(str(t.get("form", ""))),
        ]
        for t in tables
    ]
    total = sum(t["bytes"] for t in tables)
    bottom = [html.Cell("Total"), *[html.Cell("")] * 3, _number(total), html.Cell("")]
    drawn = svg(plots.bytes_by_table(tables), "Serving bytes of each embedding table")
    return html.section(
        "Embedding tables",
        html.figures(html.figure(drawn, "Stored bytes when served."), html.table(headers, cells, bottom)),
        note=_first_order_sentence(report),
    )


def _first_order_sentence(report: Report) -> str:
    """Why there is one column more than the config asks for."""
    dim = (report["config"].get("model") or {}).get("embedding_dim")
    if not report.get("first_order") or dim is None:
        return ""
    return (
        f"{report['model']} looks up {dim + 1} columns of an id: the {dim} of model.embedding_dim, and its first-order "
        "weight, which is stored, compressed and counted like the others."
    )


def _figure(value: float | None) -> html.Cell:
    return html.Cell("–") if value is None else html.Cell(f"{value:.4f}", value=value)


def _number(value: float | None) -> html.Cell:
    return html.Cell("–") if value is None else html.Cell(f"{value:,}", value=value)
