"""What each embedding method costs: a training step, a request, and the memory of planning and building.

    python -m benchmarks.backends                              # all methods at a tenth of the full tables, or the
                                                               # least that a method can reach
    python -m benchmarks.backends --backends hash mixed_dim --memory-ids 1000000

Steps: DeepFM on Criteo-shaped rows, methods alternating. Requests: one user and 100 candidate items through the serving
form, encoded ids in, logits out. Memory: the largest resident memory while a method is planned and built for training
at ``--memory-ids``, in a process of its own, beside its planned bytes: weights, buffers and Adam's state.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks._common import alternate, command, in_child, machine, markdown, page, parser, save, seconds, show
from benchmarks._rows import criteo_rows
from benchmarks._steps import Steps, run_config
from recsys_emb import list_backends
from recsys_emb.config import RunConfig
from recsys_emb.data.batches import Batch, BatchLoader
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.stages import Search
from recsys_emb.errors import BudgetTooSmall
from recsys_emb.models.base import CTRModel, build_model
from recsys_emb.quiet import quiet_torch
from recsys_emb.training import runtime
from recsys_emb.training.model_optimizer import ModelOptimizer
from recsys_emb.training.run import plan

CANDIDATES = 100
GOALS = {"optembed": 1.5}
"""Most times the step of ``full``; 1.3 for the others. A supernet holds the full table and more."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "backends", rounds=7)
    options.add_argument("--backends", nargs="+", default=list_backends(), help="beside full")
    options.add_argument("--ids", type=int, default=1_000_000)
    options.add_argument("--memory-ids", type=int, default=33_800_000, help="0: do not measure memory")
    options.add_argument("--budget", type=float, default=0.1)
    options.add_argument("--model", default="deepfm")
    options.add_argument("--batch-size", type=int, default=4096)
    options.add_argument("--steps", type=int, default=10, help="steps of a method in a round")
    options.add_argument("--requests", type=int, default=500, help="requests of a method")
    arguments = options.parse_args(argv)
    quiet_torch()
    with tempfile.TemporaryDirectory() as folder:
        result = {"command": command("backends", argv), **measure(arguments, Path(folder)), "machine": machine()}
    save(result, arguments.out, table(result))


def measure(arguments: Any, folder: Path) -> dict[str, Any]:
    """Figures of every method, ``full`` first."""
    data = folder / "rows"
    criteo_rows(data, arguments.ids, rows=16 * arguments.batch_size)
    rows: dict[str, dict[str, Any]] = {}
    sides = {}
    for name in ["full", *(b for b in arguments.backends if b != "full")]:
        config = backend_config(arguments, name, data)
        sides[name] = Steps(config, folder / name).warm_up()
        rows[name] = {"backend": name, "share": served_share(config), "goal": GOALS.get(name, 1.3)}
    steps = alternate({n: lambda s=s: s.step_ms(arguments.steps) for n, s in sides.items()}, arguments.rounds)
    for name, step in steps.items():
        rows[name] |= {"step_ms": step, "ratio": step["median"] / steps["full"]["median"]}
    del sides
    for name in steps:
        rows[name]["request_ms"] = latency(backend_config(arguments, name, data), arguments.requests)
    if arguments.memory_ids:
        large = folder / "large"
        criteo_rows(large, arguments.memory_ids, rows=arguments.batch_size)
        for name in steps:
            config = backend_config(arguments, name, large).model_dump(mode="json")
            rows[name]["memory"] = in_child("benchmarks.backends", config)
    settings = ("ids", "memory_ids", "budget", "model", "batch_size", "steps", "rounds", "requests")
    return {**{s: getattr(arguments, s) for s in settings}, "rows": list(rows.values())}


def backend_config(arguments: Any, name: str, data: Path) -> RunConfig:
    """At the budget, or at the least that the method can reach."""

    def at(budget: float | None) -> RunConfig:
        training = {"batch_size": arguments.batch_size}
        return run_config(data, arguments.model, training, {"backend": name, "budget": budget})

    config = at(None if name == "full" else arguments.budget)
    try:
        plan(config, open_dataset(data))
    except BudgetTooSmall as error:
        return at(error.min_bytes)
    return config


def served_share(config: RunConfig) -> float:
    """Planned serving bytes to those of full tables."""
    planned = plan(config, config.data.open())
    return planned.build("meta").serving_bytes() / planned.spec.full_bytes


# -- requests ---------------------------------------------------------------------------------------------------------


def latency(config: RunConfig, requests: int) -> dict[str, float]:
    """Milliseconds of a request, p50 and p99."""
    dataset = config.data.open()
    split = dataset.split("train")
    precision = runtime.pick_precision(config.training.precision, torch.device("cpu"))
    planned = plan(config, dataset)
    backend = serving_form(planned.build(), planned.backend.stages(planned.config))
    model = build_model(config.model, dataset.schema, backend).eval()
    loader = BatchLoader(split, dataset.schema, CANDIDATES)
    first = [slice(s, s + CANDIDATES) for s in range(0, len(split) - CANDIDATES, CANDIDATES)]
    batches = [loader._gather(rows) for rows in first[: min(requests, 256)]]
    times = [1e3 * seconds(lambda b=b: request(model, b, precision)) for b in batches[:20]]  # warm up
    times = [1e3 * seconds(lambda i=i: request(model, batches[i % len(batches)], precision)) for i in range(requests)]
    return {"p50": float(np.percentile(times, 50)), "p99": float(np.percentile(times, 99))}


@torch.inference_mode()
def request(model: CTRModel, batch: Batch, precision: str) -> torch.Tensor:
    with runtime.autocast(precision, torch.device("cpu")):
        return model(batch)


def serving_form(backend: EmbeddingBackend[Any], stages: Sequence[object]) -> EmbeddingBackend[Any]:
    """The compacted form. Where a search comes before it, one whose candidates are all as good."""
    if any(isinstance(stage, Search) for stage in stages):
        backend = backend.eval().search(lambda: 0.5, seed=1)
    return backend.eval().compact()


# -- memory -----------------------------------------------------------------------------------------------------------


def answer(tree: dict[str, Any]) -> dict[str, Any]:
    """Bytes of planning and building for training, the optimizer's state touched so that it counts."""
    config = RunConfig.model_validate(tree)
    dataset = config.data.open()
    small = run_config(config.data.path, config.model.name, {})
    build_model(small.model, dataset.schema, plan(small, dataset).build("meta"))  # what torch loads on first use
    runtime.configure(config.seed, "fp32")
    runtime.reset_peak_rss()
    before = runtime.peak_rss_bytes()
    model = build_model(config.model, dataset.schema, plan(config, dataset).build())
    optimizer = ModelOptimizer(model, config.training)
    for state in optimizer.state_dict().values():
        state.add_(0)
    peak = runtime.peak_rss_bytes() - before
    tensors = [*model.parameters(), *model.buffers()]
    planned = sum(t.nbytes for t in tensors) + optimizer.state_bytes()
    return {"planned_bytes": planned, "peak_bytes": peak, "ratio": peak / planned}


# -- the table --------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    lines = []
    for row in result["rows"]:
        request_ms, memory = row["request_ms"], row.get("memory")
        line = [
            row["backend"],
            f"{row['share']:.3f}",
            show(row["step_ms"]),
            f"{row['ratio']:.2f}",
            _verdict(row["ratio"], row["goal"]),
        ]
        line += [f"{request_ms['p50']:.2f}", f"{request_ms['p99']:.2f}"]
        held = [f"{memory['peak_bytes'] / 1e6:,.0f} / {memory['planned_bytes'] / 1e6:,.0f}"] if memory else [""]
        lines.append([*line, *held, f"{memory['ratio']:.2f} {_verdict(memory['ratio'], 1.2)}" if memory else ""])
    header = ["backend", "bytes to full", "step, ms (min, max)", "to full", "goal", "request p50, ms", "p99"]
    header += [f"peak / planned MB at {result['memory_ids']:,} ids", "ratio"]
    notes = (
        f"{result['model']}, batch {result['batch_size']}, {result['ids']:,} ids, budget {result['budget']} (full: "
        "none; a method that cannot reach it: its least), "
        f"{result['rounds']} rounds of {result['steps']} steps, {result['requests']} requests of {CANDIDATES} "
        "candidates; medians."
    )
    return page(result, notes, markdown(header, lines))


def _verdict(ratio: float, goal: float) -> str:
    return f"{goal}: {'met' if ratio <= goal else 'missed'}"


if __name__ == "__main__":
    main()
