"""Hand-made run folders, in the form that training leaves them, and a reader of HTML pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml


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
    **figures: Any,
) -> Path:
    """A finished run; ``figures`` replace those of its report."""
    folder.mkdir(parents=True)
    config = {
        "data": {"path": f"data/{dataset}"},
        "model": {"name": model, "embedding_dim": 16},
        "embedding": {"backend": backend, "budget": budget, "options": {}},
        "training": {"epochs": 20, "learning_rate": learning_rate},
        "seed": seed,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
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


class Page(HTMLParser):
    """Elements and their attributes, and the table as rows of (text, data-value)."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.elements, self.rows, self._cell = [], [], None
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append((tag, attrs))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = {"text": "", "value": attrs.get("data-value"), "sort": attrs.get("aria-sort")}
            self.rows[-1].append(self._cell)
        if tag == "small" and self._cell:
            self._cell["text"] += "|"

    def handle_data(self, data):
        if self._cell is not None:
            self._cell["text"] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = None

    def assert_self_contained(self):
        for tag, attrs in self.elements:
            assert tag not in ("link", "iframe", "object", "embed", "base")
            assert tag != "script" or not attrs
            for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert attrs.get(name, "#").startswith("#"), (tag, attrs)
        assert "@import" not in self.source
        assert not re.search(r"url\((?!#)", self.source)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """``make_run(name, **options)`` writes a run into ``tmp_path``."""
    return lambda name, **options: write_run(tmp_path / name, **options)


@pytest.fixture
def read_page() -> type[Page]:
    """``read_page(path)`` parses an HTML file."""
    return Page
