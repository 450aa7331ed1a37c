"""Training one batch after another, the data's loading included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks._common import seconds
from recsys_emb.config import RunConfig, parse_config
from recsys_emb.data.batches import Batch, BatchLoader
from recsys_emb.models.base import build_model
from recsys_emb.training import runtime
from recsys_emb.training.checkpoint import Checkpoints
from recsys_emb.training.run import plan
from recsys_emb.training.task import task_of
from recsys_emb.training.trainer import Trainer

WARM_UP = 5
"""Steps that nobody times: they allocate, fault in and fill caches."""


def run_config(
    data: Path,
    model: str,
    training: Mapping[str, Any],
    embedding: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> RunConfig:
    """A run on the CPU; ``options`` are the model's."""
    tree = {
        "data": {"path": str(data)},
        "model": {"name": model, **(options or {})},
        "embedding": embedding or {},
        "training": training,
        "device": "cpu",
    }
    return parse_config(tree)


class Steps:
    """A run that trains as many batches as it is told, epoch after epoch.

    Args:
        config: the run.
        scratch: where checkpoints would go; none is written.
    """

    def __init__(self, config: RunConfig, scratch: Path) -> None:
        dataset = config.data.open()
        precision = runtime.pick_precision(config.training.precision, runtime.pick_device("cpu"))
        runtime.configure(config.seed, precision)
        model = build_model(config.model, dataset.schema, plan(config, dataset).build())
        loader = BatchLoader(dataset.split("train"), dataset.schema, config.training.batch_size, shuffle=True, seed=1)
        task, checkpoints = task_of(config), Checkpoints(scratch)
        self.trainer = Trainer(task, model.train(), config.training, loader, loader, checkpoints, precision)
        self._batches = _forever(loader)

    def step(self) -> None:
        self.trainer._step(self.batch())

    def batch(self) -> Batch:
        return next(self._batches)

    def warm_up(self) -> Steps:
        self.run(WARM_UP)
        return self

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def step_ms(self, steps: int) -> float:
        """Milliseconds a step over so many steps."""
        return 1e3 * seconds(lambda: self.run(steps)) / steps


def _forever(loader: BatchLoader) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1
