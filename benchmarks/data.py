"""Preparing Criteo's raw format: rows a second and the largest resident memory, beside a peer.

    python -m benchmarks.data                                    # a million rows
    python -m benchmarks.data --rows 10000000 --rounds 1         # memory at 10 million
    python -m benchmarks.data --rows 300000 --peer fuxictr

Both passes and the writing count. Each preparation runs in a process of its own, after its imports.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import (
    alternate,
    command,
    in_child,
    machine,
    markdown,
    page,
    parser,
    save,
    seconds,
    show,
    spread,
)
from benchmarks._peer import Peer
from benchmarks._raw import criteo_file
from recsys_emb.allocator import keep_freed_memory
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.training import runtime

GOAL_ROWS, GOAL_SPEEDUP = 500_000, 15


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "data", rounds=3)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--ids", type=int, default=1_000_000, help="of the planted model; rows may hold fewer")
    options.add_argument("--peer", nargs="+", choices=["fuxictr"], default=[], help="needs `make peers`")
    arguments = options.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        result = {"command": command("data", argv), **measure(arguments, Path(folder)), "machine": machine()}
    save(result, arguments.out, table(result))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Seconds of a preparation, ours and the peer's; rows a second; peaks."""
    raw = folder / "train.txt"
    criteo_file(raw, arguments.rows, arguments.ids)
    peaks: list[float] = []

    def ours() -> float:
        done = in_child("benchmarks.data", {"raw": str(raw), "out": str(folder / "prepared")})
        peaks.append(done["peak_rss_bytes"])
        return done["seconds"]

    sides = {"recsys_emb": ours}
    if arguments.peer:
        other = folder / "peer.csv"
        criteo_file(other, arguments.rows, arguments.ids, header=True)
        sides["fuxictr"] = lambda: fuxictr(other, arguments.rows)
    taken = alternate(sides, arguments.rounds)
    rows = [{"tool": t, "seconds": s, "rows_per_second": arguments.rows / s["median"]} for t, s in taken.items()]
    for row in rows:
        row["speedup"] = row["seconds"]["median"] / taken["recsys_emb"]["median"]
    settings = {k: getattr(arguments, k) for k in ("rows", "ids", "rounds")}
    return {"settings": settings, "file_bytes": raw.stat().st_size, "rows": rows, "peak_rss_bytes": spread(peaks)}


def fuxictr(raw: Path, rows: int) -> float:
    with Peer("fuxictr_prepare", {"raw": str(raw)}) as peer:
        return peer.seconds("prepare", rows)


def answer(request: dict[str, str]) -> dict[str, float]:
    """One preparation, as ``recsys-emb data prepare`` does it."""
    keep_freed_memory()
    source = make_source("criteo", Path(request["raw"]))
    runtime.reset_peak_rss()
    taken = seconds(lambda: prepare(source, Path(request["out"]), overwrite=True))
    return {"seconds": taken, "peak_rss_bytes": runtime.peak_rss_bytes()}


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    settings, peak = result["settings"], result["peak_rss_bytes"]
    notes = (
        f"{settings['rows']:,} rows, {result['file_bytes'] / 1e6:,.0f} MB, planted ids {settings['ids']:,}, "
        f"{settings['rounds']} rounds; medians. Our largest resident memory: {peak['max'] / 1e6:,.0f} MB."
    )
    header = ["tool", "seconds (min, max)", "rows/s", f"takes longer by (goal {GOAL_SPEEDUP})", f"goal {GOAL_ROWS:,}"]
    lines = []
    for row in result["rows"]:
        mine = row["tool"] == "recsys_emb"
        verdict = ("met" if row["rows_per_second"] >= GOAL_ROWS else "missed") if mine else ""
        per_second = f"{row['rows_per_second']:,.0f}"
        lines.append([row["tool"], show(row["seconds"], 2), per_second, f"{row['speedup']:.1f}", verdict])
    return page(result, notes, markdown(header, lines))


if __name__ == "__main__":
    main()
