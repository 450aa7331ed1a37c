"""Where a training step's time goes: our own stages by the clock, then torch's operations."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks._common import markdown
from benchmarks._steps import Steps

OPERATIONS = 15


class StageClock:
    """Seconds of each stage of a :class:`Steps`, by wrapping what the trainer calls.

    data: gathering a batch. embedding: ids to vectors. dense forward: the rest of the model and the loss. update: the
    optimizers. backward: what is left of the step, the hooks of the backend with it.
    """

    def __init__(self, steps: Steps) -> None:
        self.seconds = dict.fromkeys(("data", "embedding", "forward", "update", "step"), 0.0)
        self._steps = steps
        trainer = steps.trainer
        trainer.model.embedding.forward = self._timed("embedding", trainer.model.embedding.forward)
        trainer.loss = self._timed("forward", trainer.loss)
        trainer.optimizer.step = self._timed("update", trainer.optimizer.step)
        self._train = self._timed("step", trainer._step)
        self._load = self._timed("data", steps.batch)

    def run(self, steps: int) -> dict[str, float]:
        """Milliseconds a step, by stage."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        for _ in range(steps):
            self._train(self._load())
        s = {stage: 1e3 * value / steps for stage, value in self.seconds.items()}
        return {
            "data": s["data"],
            "embedding": s["embedding"],
            "dense forward": s["forward"] - s["embedding"],
            "backward": s["step"] - s["forward"] - s["update"],
            "update": s["update"],
        }

    def _timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            begin = perf_counter()
            try:
                return call(*args)
            finally:
                self.seconds[stage] += perf_counter() - begin

        return timed


def profiled(steps: Steps, count: int) -> str:
    """Two tables in Markdown: stages, and the operations that take most of the time."""
    stages = StageClock(steps).run(count)
    total = sum(stages.values())
    by_stage = [[stage, f"{ms:.2f}", f"{ms / total:.0%}"] for stage, ms in stages.items()]
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        steps.run(count)
    events = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)
    spent = sum(e.self_cpu_time_total for e in events)
    by_operation = [
        [f"`{e.key}`", f"{e.self_cpu_time_total / 1e3 / count:.2f}", f"{e.self_cpu_time_total / spent:.0%}"]
        for e in events[:OPERATIONS]
    ]
    threads = f"{torch.get_num_threads()} threads"
    tables = [
        markdown([f"stage, {threads}", "ms a step", "share"], by_stage),
        markdown(["operation, backward's included", "ms a step", "share"], by_operation),
    ]
    return "\n\n".join(tables)
