"""``recsys-emb demo``: synthetic clicks, DeepFM with every embedding backend at a tenth of the memory, one report."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings import list_backends
from recsys_emb.errors import BudgetTooSmall, UserError
from recsys_emb.report import compare, run_page
from recsys_emb.training.run import train
from recsys_emb.training.trainer import Reporter

IDS = 100_000
SEED = 1
BUDGET = 0.1


def run_demo(
    out: Path, rows: int, reporter: Callable[[str], AbstractContextManager[Reporter]], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Fills ``out`` with data/, runs/ and report.html; what is there from an earlier call is kept.

    Args:
        out: the folder.
        rows: rows of synthetic clicks.
        reporter: shows the training of a run, by its title.
        say: is told what happens.

    Returns:
        one row a run, as ``compare`` gives them.

    Raises:
        UserError: ``out`` holds a demo of another size.
    """
    data = out / "data"
    source = make_source("synthetic", options={"rows": rows, "ids": IDS, "seed": SEED})
    if data.exists():
        dataset = open_dataset(data)
        if sum(dataset.manifest["rows"].values()) != rows:
            raise UserError(f"--out {out}: holds a demo of another size; name another folder or the same --rows")
        say(f"data: {data} is there already")
    else:
        manifest = prepare(source, data, name="synthetic")
        say(f"data: {rows:,} rows of synthetic clicks in {data} ({manifest['seconds']:.1f} s)")
    runs = []
    for backend in list_backends():
        run = out / "runs" / backend
        try:
            with reporter(f"deepfm {backend}") as shown:
                report = train(demo_config(data, backend), run, shown, resume=True)
            run_page(run)
        except BudgetTooSmall as error:
            say(f"{backend:<12} left out, {error}")
            continue
        say(f"{backend:<12} test AUC {report['auc']:.4f}  {report['serving_bytes'] / 1e6:.2f} MB")
        runs.append(run)
    return compare(runs, out / "report.html")


def demo_config(data: Path, backend: str) -> RunConfig:
    """DeepFM at D = 16; ``full`` without a budget, everything else at a tenth of it."""
    embedding: dict[str, Any] = {"backend": backend}
    if backend != "full":
        embedding["budget"] = BUDGET
    return parse_config(
        {
            "data": {"path": str(data)},
            "model": {"name": "deepfm"},
            "embedding": embedding,
            "training": {"epochs": 2, "lr_schedule": "linear", "eval_every": 30, "l2_embedding": 1e-4},
            "seed": SEED,
        }
    )
