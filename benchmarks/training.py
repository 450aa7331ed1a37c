"""Training throughput by vocabulary size, from a prepared folder to updated weights, beside peers.

    python -m benchmarks.training                                              # DeepFM at 0.1 and 5 million ids
    python -m benchmarks.training --model dcnv2 --ids 100000 33800000 --peer fuxictr deepctr
    python -m benchmarks.training --model din --data prepared/amazon --peer fuxictr
    python -m benchmarks.training --model autoint --profile                    # where the time goes

Rows are Criteo-shaped (for DIN: a shop's, with histories) unless ``--data`` names a prepared folder. Sizes and
optimizers alternate in one process; then each peer alternates with our default optimizer, once as its users run it and
once tuned: with our allocator settings, our setting of fp32 products, and batches that lie ready in memory.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import alternate, command, machine, markdown, page, parser, save, show
from benchmarks._gflop import gflop
from benchmarks._peer import PEERS, Peer, model_settings
from benchmarks._profile import profiled
from benchmarks._rows import criteo_rows, shop_rows
from benchmarks._steps import Steps, run_config
from recsys_emb.quiet import quiet_torch

GOALS = {
    "deepfm": {100_000: 4, 5_000_000: 15, 33_800_000: 80},
    "dcnv2": {100_000: 3.5, 5_000_000: 7, 33_800_000: 30},
    "autoint": {100_000: 3, 5_000_000: 6, 33_800_000: 25},
    "din": {None: 3},
}
"""Least times the throughput of FuxiCTR with our settings of allocator and products, by model and ids."""
FLAT_GOAL = 1.2
"""Most times the step at the first size."""
ROUND_MS = 2000
"""About how long a side trains in a round: the fewer steps, the longer each."""
PEER_OPTIONS = {("deepctr", "autoint"): lambda dim: {"attention_dim": dim // 2}}
"""Our options where a peer cannot have our sizes, by peer and model."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "training", rounds=3)
    options.add_argument("--model", default="deepfm")
    options.add_argument("--ids", type=int, nargs="+", default=[100_000, 5_000_000])
    options.add_argument("--data", type=Path, help="a prepared folder instead of made rows")
    options.add_argument("--optimizers", nargs="+", default=["adam", "rowwise_adagrad"])
    options.add_argument("--precision", default="auto")
    options.add_argument("--batch-size", type=int, default=4096)
    options.add_argument("--embedding-dim", type=int, default=16)
    options.add_argument("--steps", type=int, default=15, help="steps of a side in a round; a slow side takes fewer")
    options.add_argument("--peer", nargs="+", choices=PEERS, default=[], help="needs `make peers`")
    options.add_argument("--peer-ids", type=int, nargs="+", help="the sizes that peers train; all when absent")
    options.add_argument("--profile", action="store_true", help="stages and operations of a step instead")
    arguments = options.parse_args(argv)
    quiet_torch()
    with tempfile.TemporaryDirectory() as folder:
        data = make_data(arguments, Path(folder))
        if arguments.profile:
            for ids, path in data.items():
                print(f"{arguments.model}, {_ids(ids)} ids\n\n{profiled(ours(arguments, path), arguments.steps)}\n")
            return
        result = {"command": command("training", argv), **measure(arguments, data), "machine": machine()}
    save(result, arguments.out, table(result))


def make_data(arguments: argparse.Namespace, folder: Path) -> dict[int | None, Path]:
    """Prepared folders by number of ids, None where the dataset says it."""
    if arguments.data:
        return {None: arguments.data}
    rows = 64 * arguments.batch_size
    if arguments.model == "din":
        shop_rows(folder / "shop", rows)
        return {None: folder / "shop"}
    for ids in arguments.ids:
        criteo_rows(folder / str(ids), ids, rows)
    return {ids: folder / str(ids) for ids in arguments.ids}


def ours(
    arguments: argparse.Namespace, data: Path, optimizer: str = "adam", sizes: Mapping[str, int] | None = None
) -> Steps:
    training = {
        "embedding_optimizer": optimizer,
        "precision": arguments.precision,
        "batch_size": arguments.batch_size,
        "l2_embedding": 1e-5,
    }
    options = {"embedding_dim": arguments.embedding_dim, **(sizes or {})}
    return Steps(run_config(data, arguments.model, training, options=options), data / "checkpoints").warm_up()


def measure(arguments: argparse.Namespace, data: dict[int | None, Path]) -> dict[str, Any]:
    """Milliseconds a step of ours by size and optimizer, and of each peer beside ours."""
    sides = {(ids, o): ours(arguments, path, o) for ids, path in data.items() for o in arguments.optimizers}
    steps = {k: steps_in_round(arguments, side.step_ms(2)) for k, side in sides.items()}
    measured = alternate({k: lambda k=k, s=s: s.step_ms(steps[k]) for k, s in sides.items()}, arguments.rounds)
    first = next(iter(data))
    rows = [
        {
            "ids": ids,
            "optimizer": optimizer,
            "step_ms": step,
            "samples_per_second": 1e3 * arguments.batch_size / step["median"],
            "ratio_to_first": step["median"] / measured[first, optimizer]["median"],
        }
        for (ids, optimizer), step in measured.items()
    ]
    del sides
    peers = [
        {"ids": ids, "goal": GOALS.get(arguments.model, {}).get(ids) if name == "fuxictr" else None}
        | versus(arguments, path, name, tuned)
        for ids, path in data.items()
        if not arguments.peer_ids or ids in arguments.peer_ids
        for name in arguments.peer
        for tuned in (False, True)
    ]
    keys = ("model", "precision", "batch_size", "embedding_dim", "steps", "rounds")
    settings = {k: getattr(arguments, k) for k in keys}
    return {**settings, "rows": rows, "peers": peers}


def versus(arguments: argparse.Namespace, data: Path, name: str, tuned: bool) -> dict[str, Any]:
    """One peer alternating with our default optimizer."""
    settings = model_settings(data, arguments.model, arguments.embedding_dim, arguments.batch_size)
    gc.collect()  # what trained before may hold tables of 33 million ids: these need the room
    sizes = PEER_OPTIONS.get((name, arguments.model), lambda dim: {})(arguments.embedding_dim)
    with Peer(name, settings, tuned) as peer:
        mine = ours(arguments, data, sizes=sizes)
        peer.batch_ms("train", 1)
        steps = steps_in_round(arguments, peer.batch_ms("train", 1))
        our_steps = steps_in_round(arguments, mine.step_ms(2))
        sides = {"ours": lambda: mine.step_ms(our_steps), "peer": lambda: peer.batch_ms("train", steps)}
        step = alternate(sides, arguments.rounds)
        peer_gflop = peer.step_gflop()
    options = {"embedding_dim": arguments.embedding_dim, **sizes}
    speedup = step["peer"]["median"] / step["ours"]["median"]
    per_second = 1e3 * arguments.batch_size / step["peer"]["median"]
    return {
        "peer": name,
        "tuned": tuned,
        "peer_steps": steps,
        "our_options": sizes,
        "step_ms": step["peer"],
        "our_step_ms": step["ours"],
        "samples_per_second": per_second,
        "speedup": speedup,
        "gflop": peer_gflop,
        "our_gflop": gflop(data, arguments.model, arguments.batch_size, options),
    }


def steps_in_round(arguments: argparse.Namespace, step_ms: float) -> int:
    return max(1, min(arguments.steps, round(ROUND_MS / step_ms)))


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    notes = (
        f"{result['model']}, D = {result['embedding_dim']}, batch {result['batch_size']}, precision "
        f"{result['precision']}, {result['rounds']} rounds of {result['steps']} steps, loading included; medians."
    )
    header = ["ids", "optimizer", "step, ms (min, max)", "samples/s", f"to the first size (goal {FLAT_GOAL})"]
    lines = [
        [
            _ids(r["ids"]),
            r["optimizer"],
            show(r["step_ms"]),
            f"{r['samples_per_second']:,.0f}",
            f"{r['ratio_to_first']:.2f}",
        ]
        for r in result["rows"]
    ]
    tables = [markdown(header, lines)]
    if result["peers"]:
        header = ["ids", "peer", "settings", "step, ms (min, max)", "samples/s", "ours, ms", "GFLOP", "ours, GFLOP"]
        header += ["we are faster by", "goal"]
        ordered = sorted(result["peers"], key=lambda r: not r["tuned"])  # the fairer comparison leads
        tables.append(markdown(header, [_peer_line(r) for r in ordered]))
    return page(result, notes, *tables)


def _peer_line(row: dict[str, Any]) -> list[str]:
    goal = row["goal"]
    return [
        _ids(row["ids"]),
        row["peer"] + "".join(f", {key} {value}" for key, value in row["our_options"].items()),
        "tuned" if row["tuned"] else "its own",
        show(row["step_ms"]),
        f"{row['samples_per_second']:,.0f}",
        show(row["our_step_ms"]),
        f"{row['gflop']:.1f}",
        f"{row['our_gflop']:.1f}",
        f"{row['speedup']:.1f}",
        "" if goal is None or not row["tuned"] else f"{goal}: {'met' if row['speedup'] >= goal else 'missed'}",
    ]


def _ids(ids: int | None) -> str:
    return "the dataset's" if ids is None else f"{ids:,}"


if __name__ == "__main__":
    main()
