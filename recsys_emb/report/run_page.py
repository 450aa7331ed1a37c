"""The page of one run: headline figures, sizes, learning curve, tables, config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from recsys_emb.files import read_json, write_text
from recsys_emb.report import html
from recsys_emb.report.columns import BY_KEY, SIZES_NOTE
from recsys_emb.report.differences import label
from recsys_emb.report.runs import Report, load_report
from recsys_emb.sizes import human_bytes
from recsys_emb.training.run_files import read_metrics


def run_page(run_dir: str | Path, out: str | Path | None = None) -> Path:
    """Writes the page of a finished run, ``report.html`` in its folder unless ``out`` names another file.

    Raises:
        UserError: not a finished run.
    """
    run = Path(run_dir)
    path = run / "report.html" if out is None else Path(out)
    report, events = load_report(run), read_metrics(run)
    env = read_json(run / "env.json") if (run / "env.json").is_file() else {}
    write_text(
        path,
        html.page(
            report["run"],
            f"{label(report)} on {report['dataset']}, seed {report['seed']}",
            html.section("Quality on the test split", html.cards(_quality(report)), note=_bayes_sentence(report)),
            html.section("Memory", html.cards(_sizes(report)), note=SIZES_NOTE),
            html.section("Training", html.cards(_figures(report, "samples_per_second", "train_seconds", "epochs"))),
            _learning_curve(events),
            _tables(report),
            html.section("Config", html.preformatted((run / "config.yaml").read_text(encoding="utf-8"))),
            html.section("Environment", html.preformatted(json.dumps(env, indent=2))) if env else "",
        ),
    )
    return path


def _quality(report: Report) -> list[tuple[str, str, str]]:
    return _figures(report, "auc", "gauc", "bayes_gap", "logloss", "ne", "calibration")


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


def _learning_curve(events: list[dict[str, Any]]) -> str:
    if not events:
        return ""
    from recsys_emb.report import plots  # matplotlib takes a while to import
    from recsys_emb.report.figure import svg

    caption = "Loss of training batches and of the validation split, and validation AUC."
    drawn = svg(plots.learning_curves(events)[0], "Learning curve")
    return html.section("Learning curve", html.figures(html.figure(drawn, caption)))


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
        html.Header("Width", "columns stored"),
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
    )


def _number(value: float | None) -> html.Cell:
    return html.Cell("–") if value is None else html.Cell(f"{value:,}", value=value)
