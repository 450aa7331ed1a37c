"""Predicting with an artifact: prepared rows, a raw file, and single requests; beside a peer.

    python -m benchmarks.predict
    python -m benchmarks.predict --model dcnv2 --peer fuxictr

Prepared rows: from memory-mapped ids to predictions, what ``evaluate`` does before its metrics; the peers' figure is
the same part of theirs. Raw file: ``recsys-emb predict`` from Criteo's text to a Parquet file. A request: one user and
100 candidate items as a polars frame of raw values, to logits, on one thread; with ``--backends`` of the same model on
these, too, each at a tenth of the full tables.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from benchmarks._common import alternate, command, machine, markdown, page, parser, save, seconds, show
from benchmarks._peer import PEERS, Peer, model_settings
from benchmarks._raw import criteo_file
from benchmarks._steps import run_config
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.data.store import open_dataset
from recsys_emb.quiet import quiet_torch
from recsys_emb.serving import Artifact, load_artifact, predict_file, write_artifact
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train
from recsys_emb.training.run_dir import RunDir
from recsys_emb.training.stage_runner import predict_split

CANDIDATES = 100
REQUEST_MS = (2, 4)
"""At most at the median and at the 99th percentile."""
GOAL = 3
"""Least times FuxiCTR's throughput on prepared rows."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "predict", rounds=5)
    options.add_argument("--model", default="deepfm")
    options.add_argument("--backend", default="full")
    options.add_argument("--budget", type=float)
    options.add_argument("--rows", type=int, default=300_000)
    options.add_argument("--ids", type=int, default=100_000)
    options.add_argument("--batch-size", type=int, default=4096)
    options.add_argument("--requests", type=int, default=300)
    options.add_argument("--backends", nargs="+", default=[], help="measure requests on these at 1/10, too")
    options.add_argument("--peer", nargs="+", choices=PEERS, default=[], help="needs `make peers`")
    arguments = options.parse_args(argv)
    quiet_torch()
    with tempfile.TemporaryDirectory() as folder:
        result = {"command": command("predict", argv), **measure(arguments, Path(folder)), "machine": machine()}
    save(result, arguments.out, table(result))


def make_artifact(arguments: argparse.Namespace, raw: Path, folder: Path) -> Artifact:
    """From a raw file, after a few steps of training."""
    prepare(make_source("criteo", raw), folder / "data")
    return trained(arguments, folder, arguments.backend, arguments.budget)


def trained(arguments: argparse.Namespace, folder: Path, backend: str, budget: float | None) -> Artifact:
    """A few steps on the prepared rows of ``folder``."""
    training = {"max_steps": 5, "batch_size": arguments.batch_size}
    embedding = {"backend": backend, "budget": budget}
    run, artifact = folder / f"run-{backend}-{budget}", folder / f"artifact-{backend}-{budget}"
    train(run_config(folder / "data", arguments.model, training, embedding), run, Silent())
    write_artifact(RunDir.open(run), artifact, evaluate=False)
    return load_artifact(artifact, device="cpu")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rows a second by way, milliseconds of a request."""
    raw = folder / "train.txt"
    criteo_file(raw, arguments.rows, arguments.ids)
    artifact = make_artifact(arguments, raw, folder)
    data = folder / "data"
    dataset, size = open_dataset(data), arguments.batch_size
    rows = len(dataset.split("train"))

    def prepared() -> float:
        precision = artifact.manifest.precision
        return seconds(lambda: predict_split(artifact.model, dataset, "train", artifact.config, precision)) / rows

    def from_raw() -> float:
        out = folder / "predictions.parquet"
        taken = seconds(lambda: predict_file(artifact, raw, out, size))
        out.unlink()
        return taken / arguments.rows

    prepared(), from_raw()  # vocabularies are loaded, memory is allocated
    ways = {"prepared rows": prepared, "raw file": from_raw}
    measured = [{"tool": "recsys_emb", "way": w, "row_us": us(s)} for w, s in alternate(ways, arguments.rounds).items()]
    for name in arguments.peer:
        for tuned in (False, True):
            measured.append(versus(name, tuned, artifact, data, prepared, arguments.rounds))
    for row in measured:
        row["rows_per_second"] = 1e6 / row["row_us"]["median"]
    keys = ("model", "backend", "budget", "rows", "ids", "batch_size", "rounds", "requests")
    requests = latency(artifact, raw, arguments.requests)
    smaller = {name: trained(arguments, folder, name, 0.1) for name in arguments.backends}
    tenth = {name: latency(small, raw, arguments.requests) for name, small in smaller.items()}
    return {
        **{k: getattr(arguments, k) for k in keys},
        "measured": measured,
        "request_ms": requests,
        "request_ms_at_a_tenth": tenth,
    }


def versus(
    name: str, tuned: bool, artifact: Artifact, data: Path, prepared: Callable[[], float], rounds: int
) -> dict[str, Any]:
    """A peer's prediction of the same rows, alternating with ours."""
    model, size = artifact.config.model, artifact.config.training.batch_size
    batches = max(1, len(open_dataset(data).split("train")) // size)
    with Peer(name, model_settings(data, model.name, model.embedding_dim, size), tuned) as peer:
        peer.seconds("predict", 2)
        sides = {"ours": prepared, "peer": lambda: peer.seconds("predict", batches) / (batches * size)}
        taken = alternate(sides, rounds)
    return {
        "tool": name,
        "way": f"prepared rows, {'tuned' if tuned else 'its own settings'}",
        "row_us": us(taken["peer"]),
        "speedup": taken["peer"]["median"] / taken["ours"]["median"],
    }


def us(taken: dict[str, float]) -> dict[str, float]:
    return {k: 1e6 * v for k, v in taken.items()}


def latency(artifact: Artifact, raw: Path, requests: int) -> dict[str, float]:
    """Milliseconds of a request of raw values on one thread, p50 and p99."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    source = make_source("criteo", raw)
    frame = next(iter(source.inputs())).frame
    frames = [_request(frame, i) for i in range(min(requests, 100))]
    for one in frames[:10]:
        artifact.logits(one)
    times = [1e3 * seconds(lambda i=i: artifact.logits(frames[i % len(frames)])) for i in range(requests)]
    torch.set_num_threads(threads)
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


def _request(frame: pl.DataFrame, number: int) -> pl.DataFrame:
    """The candidates' rows, with the first half of the columns, the user's, the same in all."""
    start = number * CANDIDATES % max(1, len(frame) - CANDIDATES)
    part = frame.slice(start, CANDIDATES)
    users = part.columns[: len(part.columns) // 2]
    return part.with_columns(pl.col(name).first() for name in users)


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    request = result["request_ms"]
    notes = (
        f"{result['model']} on {result['backend']}, {result['rows']:,} rows, {result['ids']:,} planted ids, batch "
        f"{result['batch_size']}, {result['rounds']} rounds; medians. A request of {CANDIDATES} candidates: p50 "
        f"{request['p50']:.2f} ms, p99 {request['p99']:.2f} ms."
    )
    header = ["tool", "from", "us a row (min, max)", "rows/s", f"we are faster by (goal {GOAL}, its own settings)"]
    lines = [
        [
            r["tool"],
            r["way"],
            show(r["row_us"], 2),
            f"{r['rows_per_second']:,.0f}",
            f"{r['speedup']:.1f}" if "speedup" in r else "",
        ]
        for r in result["measured"]
    ]
    tenth = [[name, f"{ms['p50']:.2f}", f"{ms['p99']:.2f}"] for name, ms in result["request_ms_at_a_tenth"].items()]
    requests = markdown(["a request on, at 1/10", f"p50 ms (goal {REQUEST_MS[0]})", f"p99 ms ({REQUEST_MS[1]})"], tenth)
    tables = [markdown(header, lines), *([requests] if tenth else [])]
    return page(result, notes, "\n\n".join(tables))


if __name__ == "__main__":
    main()
