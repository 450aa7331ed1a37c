"""Training throughput by vocabulary size: Criteo-shaped rows, from a prepared folder to updated weights.

    python -m benchmarks.training                                  # DeepFM at 0.1 and 5 million ids
    python -m benchmarks.training --model dcnv2 --ids 100000 5000000 33800000

Sizes alternate in one process, several rounds; the figures are medians over rounds with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.schema import CategoricalField, DatasetSchema
from recsys_emb.data.sources._planted import scale_cardinalities
from recsys_emb.data.store import FORMAT_VERSION, NpyWriter, open_dataset
from recsys_emb.models.base import build_model
from recsys_emb.training import runtime
from recsys_emb.training.checkpoint import Checkpoints
from recsys_emb.training.run import plan
from recsys_emb.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="deepfm")
    parser.add_argument("--ids", type=int, nargs="+", default=[100_000, 5_000_000])
    parser.add_argument("--optimizer", default="adam", help="training.embedding_optimizer")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=30, help="steps a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "training.json")
    arguments = parser.parse_args()
    runtime.quiet_torch()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments, Path(folder))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    arguments.out.with_suffix(".md").write_text(table(result))
    print(table(result))


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Milliseconds a step for each vocabulary size."""
    runs = {}
    for ids in arguments.ids:
        data = folder / str(ids)
        write_rows(data, ids, rows=64 * arguments.batch_size)
        runs[ids] = stepper(config_for(data, arguments), folder / f"checkpoints-{ids}")
    for step in runs.values():  # warm up: allocate, fault in, fill caches
        for _ in range(5):
            next(step)
    times: dict[int, list[float]] = {ids: [] for ids in runs}
    for _ in range(arguments.rounds):
        for ids, step in runs.items():
            begin = time.perf_counter()
            for _ in range(arguments.steps):
                next(step)
            times[ids].append(1e3 * (time.perf_counter() - begin) / arguments.steps)
    base = median(times[arguments.ids[0]])
    settings = ("model", "optimizer", "precision", "batch_size", "steps", "rounds")
    return {
        "command": f"python -m benchmarks.training --model {arguments.model} --ids {' '.join(map(str, arguments.ids))}",
        **{k: getattr(arguments, k) for k in settings},
        "rows": [
            {
                "ids": ids,
                "step_ms": {"median": median(t), "min": min(t), "max": max(t)},
                "samples_per_second": 1e3 * arguments.batch_size / median(t),
                "ratio_to_first": median(t) / base,
            }
            for ids, t in times.items()
        ],
        "machine": runtime.environment(),
    }


def config_for(data: Path, arguments: argparse.Namespace) -> RunConfig:
    training = {
        "embedding_optimizer": arguments.optimizer,
        "precision": arguments.precision,
        "batch_size": arguments.batch_size,
        "l2_embedding": 1e-5,
    }
    return parse_config({"data": {"path": str(data)}, "model": {"name": arguments.model}, "training": training})


def stepper(config: RunConfig, checkpoints: Path) -> Any:
    """Trains one batch each time it is advanced, data loading included."""
    dataset = open_dataset(config.data.path)
    precision = runtime.pick_precision(config.training.precision, runtime.pick_device("cpu"))
    runtime.configure(config.seed, precision)
    model = build_model(config.model, dataset.schema, plan(config, dataset).build())
    loader = BatchLoader(dataset.split("train"), dataset.schema, config.training.batch_size, shuffle=True, seed=1)
    trainer = Trainer(model, config.training, loader, loader, Checkpoints(checkpoints), precision)
    model.train()
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            trainer._step(batch)
            yield


def write_rows(folder: Path, ids: int, rows: int) -> None:
    """A prepared folder of Criteo's shape: 26 fields of its relative sizes, Zipf ids, 13 dense values."""
    sizes = scale_cardinalities(ids)
    rng = np.random.default_rng(1)
    names = [f"C{i + 1}" for i in range(len(sizes))]
    for part in ("train", "counts"):
        (folder / part).mkdir(parents=True)
    columns = [np.minimum((n + 1.0) ** rng.random(rows), n).astype(np.int32) - 1 for n in sizes]
    arrays = {
        "labels": (rng.random(rows) < 0.25).astype(np.uint8),
        "dense": rng.normal(size=(rows, 13)).astype(np.float32),
        "ids": np.stack(columns, axis=1),
    }
    for name, array in arrays.items():
        writer = NpyWriter(folder / "train" / f"{name}.npy", array.dtype, array.shape[1] if array.ndim == 2 else None)
        writer.append(array)
        writer.close()
    for name, size, column in zip(names, sizes, columns):
        np.save(folder / "counts" / f"{name}.npy", np.bincount(column, minlength=size))
    schema = DatasetSchema(
        dense=tuple(f"I{i + 1}" for i in range(13)),
        categorical=tuple(CategoricalField(name=n, vocabulary=n) for n in names),
        vocabularies=dict(zip(names, sizes)),
    )
    (folder / "schema.json").write_text(schema.model_dump_json())
    (folder / "dataset.json").write_text(json.dumps({"format_version": FORMAT_VERSION, "source": "benchmark"}))


def table(result: dict[str, Any]) -> str:
    """The result in Markdown."""
    machine = result["machine"]
    lines = [
        f"Made by `{result['command']}`: {result['model']}, batch {result['batch_size']}, "
        f"optimizer {result['optimizer']}, precision {result['precision']}, "
        f"{result['rounds']} rounds of {result['steps']} steps.",
        "",
        "| ids | step, ms (min, max) | samples/s | ratio |",
        "|---|---|---|---|",
    ]
    for row in result["rows"]:
        ms = row["step_ms"]
        lines.append(
            f"| {row['ids']:,} | {ms['median']:.1f} ({ms['min']:.1f}, {ms['max']:.1f}) "
            f"| {row['samples_per_second']:,.0f} | {row['ratio_to_first']:.2f} |"
        )
    lines += ["", f"{machine['processor']}, {machine['cpus']} CPUs, torch {machine['packages']['torch']}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
