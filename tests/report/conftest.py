"""Hand-made run folders, in the form that training leaves them, and a reader of HTML pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
import pytest
import yaml

from recsys_emb.training.run_files import PREDICTIONS
from recsys_emb.training.stored_predictions import StoredPredictions


def write_run(
    folder: Path,
    *,
    model: str = "deepfm",
    backend: str = "full",
    budget: float | None = None,
    seed: int = 1,
    learning_rate: float = 0.001,
    dataset: str = "movielens-1m",
    done: bool = True,
    config: Mapping[str, Any] = MappingProxyType({}),
    predictions: StoredPredictions | None = None,
    **figures: Any,
) -> Path:
    """A finished run; ``figures`` replace those of its report, ``config`` keys ``section.key`` of its config."""
    folder.mkdir(parents=True)
    tree: dict[str, Any] = {
        "data": {"path": f"data/{dataset}"},
        "model": {"name": model, "embedding_dim": 16},
        "embedding": {"backend": backend, "budget": budget, "options": {}},
        "training": {"epochs": 20, "learning_rate": learning_rate},
        "seed": seed,
    }
    for key, value in config.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    if predictions is not None:
        predictions.save(folder / PREDICTIONS)
    events: list[dict[str, Any]] = []
    for step in range(100, 1001, 100):
        events.append({"event": "train", "step": step, "epoch": step / 200, "loss": 0.6 - step / 4000})
        if step % 200 == 0:
            events.append(
                {"event": "eval", "step": step, "epoch": step / 200, "auc": 0.8 + step / 12000, "logloss": 0.5}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "env.json").write_text(json.dumps({"python": "3.11", "torch": "2.13.0"}))
    tables = [
        {"name": "user", "ids": 6041, "rows": 6041, "width": 16, "bytes": 386_624, "form": "full"},
        {"name": "item", "ids": 3953, "rows": 988, "width": 16, "bytes": 63_232, "form": "hash"},
    ]
    report = {
        "auc": 0.8912, "logloss": 0.3245, "ne": 0.6021, "calibration": 1.012, "gauc": 0.7512,
        "serving_bytes": 449_856, "full_bytes": 639_616, "ratio": 449_856 / 639_616, "training_bytes": 2_345_678,
        "peak_rss_bytes": 812_345_678, "samples_per_second": 91_234.5, "train_seconds": 123.4, "epochs": 5,
        "model": model, "backend": backend, "dataset": dataset, "seed": seed, "bayes_auc": None, "valid_auc": 0.8931,
        "budget": budget, "stages": ["train"], "tables": tables,
    }  # fmt: skip
    (folder / "report.json").write_text(json.dumps(report | figures))
    if done:
        (folder / "DONE").touch()
    return folder


def write_search(folder: Path, *, trials: list[dict[str, Any]] | None = None, **summary: Any) -> Path:
    """A finished search over widths and a learning rate, as ``recsys-emb search`` leaves it; ``summary`` replaces keys
    of ``search.json``."""
    write_run(folder / "trials" / "0003", model="deepfm", backend="field_dim")
    nothing = dict.fromkeys(("auc", "serving_bytes", "seconds", "run", "message", "enqueued", "score"))
    nothing |= {
        "pareto": False,
        "winner": False,
        "param:embedding.options.widths.user": None,
        "param:training.rate": None,
    }

    def row(number: int | None, state: str, **values: Any) -> dict[str, Any]:
        values = {f"param:{k.replace('__', '.')}" if "__" in k else k: v for k, v in values.items()}
        return {"number": number, "state": state, **nothing, **values}

    known = {"seconds": 61.5, "embedding__options__widths__user": 8, "training__rate": 0.00123456}
    trials = trials or [
        row(
            None,
            "complete",
            auc=0.8881,
            serving_bytes=224_928,
            enqueued="uniform",
            run="baselines/uniform",
            pareto=True,
        ),
        row(None, "infeasible", serving_bytes=639_616, enqueued="full", message="639,616 bytes, the budget is 320,000"),
        row(0, "complete", auc=0.8801, serving_bytes=300_000, run="trials/0000", **known),
        row(1, "pruned", auc=0.8, serving_bytes=250_000, message="AUC 0.80000 after 8,192 rows", **known),
        row(2, "failed", message="ValueError: <b>boom</b>"),
        row(3, "complete", auc=0.8931, serving_bytes=256_000, run="trials/0003", pareto=True, winner=True, **known),
    ]
    pl.DataFrame(trials, infer_schema_length=None).write_parquet(folder / "trials.parquet")
    test = {"auc": 0.8912, "logloss": 0.3245, "gauc": None, "calibration": 1.0, "serving_bytes": 256_000}
    entry = {"number": None, "state": "complete", "message": None, "baseline": None, "settings": ""}
    entry |= {"method": "deepfm / full"}
    winner = {"name": "trial 3", "run": "trials/0003", "valid_auc": 0.8931, "serving_bytes": 256_000, "test": test}
    uniform = {"name": "uniform", "run": "baselines/uniform", "valid_auc": 0.8881, "serving_bytes": 224_928}
    full = {"name": "full", "run": None, "valid_auc": None, "serving_bytes": 639_616, "test": None}
    written = {
        "study": "widths", "mode": "budget", "scoring": "train", "sampler": "tpe", "pruner": "median", "seed": 1,
        "dataset": "movielens-1m", "models": ["deepfm"], "budget_bytes": 320_000, "full_bytes": 639_616,
        "states": {"complete": 2, "pruned": 1, "failed": 1}, "trials": 4,
        "winner": entry | winner | {
            "method": "deepfm / field_dim", "settings": "rate=0.00123, widths 8",
            "params": {}, "widths": {"user": 8, "item": 0},
        },
        "baselines": [
            entry | uniform | {"test": test | {"auc": 0.8870}},
            entry | full | {"state": "infeasible", "message": "639,616 bytes, the budget is 320,000"},
        ],
        "hypervolume": None, "correlation": None, "scored": None, "lead": None,
        "importances": {"training.rate": 0.7, "embedding.options.widths.user": 0.3},
    }  # fmt: skip
    (folder / "search.json").write_text(json.dumps(written | summary))
    return folder


class Page(HTMLParser):
    """Elements and their attributes, and the table as rows of (text, data-value)."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.rows, self._cell, self._heading = [], [], None, None
        self._tables = {}
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag == "h2":
            self._heading = ""
        if tag == "table":
            self._tables.setdefault(self._heading, len(self.rows))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = {"text": "", "value": attrs.get("data-value"), "sort": attrs.get("aria-sort")}
            self.rows[-1].append(self._cell)
        if tag == "small" and self._cell:
            self._cell["text"] += "|"

    def handle_data(self, data):
        if self._heading == "":
            self._heading = data
        if self._cell is not None:
            self._cell["text"] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def table(self, heading):
        """Below a heading: the (first) place of each column of its first table by title, then all rows."""
        start = self._tables[heading]
        end = min([at for at in self._tables.values() if at > start], default=len(self.rows))
        header, *rows = self.rows[start:end]
        columns = {}
        for i, cell in enumerate(header):
            columns.setdefault(cell["text"].replace("\u00a0", " "), i)
        return columns, *rows

    def assert_self_contained(self):
        for tag, attrs in self.elements:
            assert tag not in ("link", "iframe", "object", "embed", "base")
            assert tag != "script" or not attrs
            if tag == "a":  # to a page beside this one
                assert not re.match(r"\w+:|/", attrs["href"])
                continue
            for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert attrs.get(name, "#").startswith("#"), (tag, attrs)
        assert "@import" not in self.source
        assert not re.search(r"url\((?!#)", self.source)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(name, **options)`` writes a run into ``tmp_path``."""
    return lambda name, **options: write_run(tmp_path / name, **options)


@pytest.fixture
def make_search(tmp_path: Path) -> Callable[..., Path]:
    """``make_search(name, **summary)`` writes a search into ``tmp_path``."""
    return lambda name, **options: write_search(tmp_path / name, **options)


@pytest.fixture
def read_page() -> type[Page]:
    """``read_page(path)`` parses an HTML file."""
    return Page
