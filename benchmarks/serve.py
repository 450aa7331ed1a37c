"""The server's requests per second and latencies, beside how many clients ask at once.

    python -m benchmarks.serve
    python -m benchmarks.serve --clients 1 8 64 --seconds 10

Each client asks again as soon as it is answered, over one connection that stays open: 100 candidates of Criteo's fields
as an Arrow stream or as JSON. Clients run in a process of their own, on the same cores.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks._common import command, machine, markdown, page, parser, save
from benchmarks._raw import criteo_file
from benchmarks.predict import CANDIDATES, make_artifact
from recsys_emb.data.options import make_source
from recsys_emb.quiet import quiet_torch
from recsys_emb.serving.server.bodies import ARROW, JSON


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "serve", rounds=1)
    options.add_argument("--model", default="deepfm")
    options.add_argument("--backend", default="full")
    options.add_argument("--budget", type=float)
    options.add_argument("--rows", type=int, default=300_000)
    options.add_argument("--ids", type=int, default=100_000)
    options.add_argument("--batch-size", type=int, default=4096)
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    options.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    arguments = options.parse_args(argv)
    quiet_torch()
    with tempfile.TemporaryDirectory() as folder:
        result = {"command": command("serve", argv), **measure(arguments, Path(folder)), "machine": machine()}
    save(result, arguments.out, table(result))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A row for each number of clients and each kind of body."""
    raw = folder / "train.txt"
    criteo_file(raw, arguments.rows, arguments.ids)
    artifact = make_artifact(arguments, raw, folder)
    frame = next(iter(make_source("criteo", raw).inputs())).frame[:CANDIDATES]
    rows = []
    with serving(artifact.path) as url, ProcessPoolExecutor(1, get_context("spawn")) as pool:
        for kind, body in ((ARROW, _stream(frame)), (JSON, json.dumps({"rows": frame.to_dict(as_series=False)}))):
            pool.submit(ask, url, kind, body, 1, 0.2).result()
            for clients in arguments.clients:
                rows.append(pool.submit(ask, url, kind, body, clients, arguments.seconds).result())
    keys = ("model", "backend", "budget", "rows", "ids", "seconds")
    return {**{k: getattr(arguments, k) for k in keys}, "measured": rows}


@contextmanager
def serving(artifact: Path) -> Iterator[str]:
    """The address of a server of its own."""
    line = [sys.executable, "-m", "recsys_emb", "serve", str(artifact), "--port", "0"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            until = time.monotonic() + 30
            while time.monotonic() < until:
                try:
                    httpx.get(f"{url}/health").raise_for_status()
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            yield url
        finally:
            process.terminate()


def ask(url: str, kind: str, body: str | bytes, clients: int, seconds: float) -> dict[str, Any]:
    """``clients`` ask for so long: requests a second, and milliseconds of a request. Raises on any that fails."""

    async def one(client: httpx.AsyncClient, until: float) -> list[float]:
        taken: list[float] = []
        while (started := time.perf_counter()) < until or not taken:
            (await client.post(f"{url}/predict", content=body, headers={"content-type": kind})).raise_for_status()
            taken.append(1e3 * (time.perf_counter() - started))
        return taken

    async def everyone() -> tuple[list[float], float]:
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        async with httpx.AsyncClient(limits=limits, timeout=60) as client:
            started = time.perf_counter()
            answered = await asyncio.gather(*(one(client, started + seconds) for _ in range(clients)))
            return [ms for times in answered for ms in times], time.perf_counter() - started

    taken, wall = asyncio.run(everyone())
    p50, p99 = np.percentile(taken, [50, 99]).tolist()
    return {"body": kind, "clients": clients, "requests_per_second": len(taken) / wall, "p50_ms": p50, "p99_ms": p99}


def _stream(frame: pl.DataFrame) -> bytes:
    sink, rows = io.BytesIO(), frame.to_arrow()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue()


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    notes = (
        f"{result['model']} on {result['backend']}, requests of {CANDIDATES} rows, {result['seconds']:g} s each; the "
        "clients, in Python, run on the same cores."
    )
    header = ["body", "clients", "requests/s", "p50 ms", "p99 ms"]
    lines = [
        [r["body"], str(r["clients"]), f"{r['requests_per_second']:,.0f}", f"{r['p50_ms']:.1f}", f"{r['p99_ms']:.1f}"]
        for r in result["measured"]
    ]
    return page(result, notes, markdown(header, lines))


if __name__ == "__main__":
    main()
