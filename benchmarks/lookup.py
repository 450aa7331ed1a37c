"""The lookup of every serving form beside full tables: a batch of ids in, vectors out, one thread.

    python -m benchmarks.lookup                                # every backend and post-training method at a tenth
    python -m benchmarks.lookup --budget 0.02 --methods pq     # or at the least that one can reach

Tables have the relative sizes of Criteo's 26 fields and rows of random numbers, ids are Zipf; sides alternate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from benchmarks._common import alternate, command, machine, markdown, page, parser, save, seconds, show
from benchmarks._rows import zipf
from benchmarks.backends import serving_form
from recsys_emb import list_backends
from recsys_emb.data.sources._planted import scale_cardinalities
from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, Stats, TableSpec
from recsys_emb.embeddings.posttraining import compress, list_posttraining, min_compressed_bytes
from recsys_emb.errors import BudgetTooSmall
from recsys_emb.quiet import quiet_torch

GOAL = 1.5
"""Most times the lookup of full tables."""


def main(argv: Sequence[str] | None = None) -> None:
    options = parser(__doc__, "lookup", rounds=9)
    options.add_argument("--methods", nargs="+", default=[*list_backends(), *list_posttraining()], help="beside full")
    options.add_argument("--ids", type=int, default=1_000_000)
    options.add_argument("--budget", type=float, default=0.1)
    options.add_argument("--embedding-dim", type=int, default=16)
    options.add_argument("--batch-size", type=int, default=4096)
    options.add_argument("--lookups", type=int, default=20, help="of a method in a round")
    arguments = options.parse_args(argv)
    quiet_torch()
    torch.set_num_threads(1)
    result = {"command": command("lookup", argv), **measure(arguments), "machine": machine()}
    save(result, arguments.out, table(result))


def measure(arguments: Any) -> dict[str, Any]:
    """Milliseconds a lookup of every method, ``full`` first."""
    rng = np.random.default_rng(1)
    sizes = scale_cardinalities(arguments.ids)
    spec = GroupSpec(tuple(TableSpec(f"C{i}", n, 0.1) for i, n in enumerate(sizes)), arguments.embedding_dim)
    columns = [zipf(rng, n, arguments.batch_size) for n in sizes]
    stats = {t.name: np.bincount(ids, minlength=t.num_embeddings) for t, ids in zip(spec.tables, columns)}
    stats = {name: -np.sort(-counts) for name, counts in stats.items()}
    batch = torch.from_numpy(np.concatenate(columns).astype(np.int64))
    counts = [arguments.batch_size] * len(sizes)
    torch.manual_seed(1)
    full = build("full", spec, None, stats)
    forms = {"full": full.eval().compact()}
    for name in arguments.methods:
        if name != "full":
            forms[name] = form(name, full, arguments.budget, stats)
    lookups = arguments.lookups

    def milliseconds(backend: EmbeddingBackend[Any], times: int) -> float:
        with torch.inference_mode():
            return 1e3 * seconds(lambda: [backend(batch, counts) for _ in range(times)]) / times

    for backend in forms.values():
        milliseconds(backend, 3)  # warm up
    measured = alternate({n: lambda b=b: milliseconds(b, lookups) for n, b in forms.items()}, arguments.rounds)
    rows = [
        {
            "method": name,
            "share": forms[name].serving_bytes() / spec.full_bytes,
            "lookup_ms": times,
            "ratio": times["median"] / measured["full"]["median"],
        }
        for name, times in measured.items()
    ]
    settings = ("ids", "budget", "embedding_dim", "batch_size", "lookups", "rounds")
    return {**{s: getattr(arguments, s) for s in settings}, "rows": rows}


def build(name: str, spec: GroupSpec, budget: int | None, stats: Stats) -> EmbeddingBackend[Any]:
    cls, config = plan_backend(name, spec, budget, stats)
    return cls(spec, config)


def form(name: str, full: EmbeddingBackend[Any], ratio: float, stats: Stats) -> EmbeddingBackend[Any]:
    """The serving form of a method at the budget, or at the least that it can reach."""
    spec = full.spec
    budget = int(ratio * spec.full_bytes)
    if name in list_posttraining():
        return compress(full, name, max(budget, min_compressed_bytes(spec, name, stats)), stats)
    try:
        backend = build(name, spec, budget, stats)
    except BudgetTooSmall as error:
        backend = build(name, spec, error.min_bytes, stats)
    return serving_form(backend, backend.stages(backend.config))


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    header = ["method", "bytes to full", "lookup, ms (min, max)", "to full", "goal"]
    lines = [
        [
            row["method"],
            f"{row['share']:.3f}",
            show(row["lookup_ms"]),
            f"{row['ratio']:.2f}",
            f"{GOAL}: {'met' if row['ratio'] <= GOAL else 'missed'}",
        ]
        for row in result["rows"]
    ]
    notes = (
        f"{len(lines)} serving forms, {result['batch_size']} rows of 26 ids, {result['ids']:,} ids in all, D = "
        f"{result['embedding_dim']}, budget {result['budget']}; {result['rounds']} rounds of {result['lookups']} "
        "lookups, one thread; medians."
    )
    return page(result, notes, markdown(header, lines))


if __name__ == "__main__":
    main()
