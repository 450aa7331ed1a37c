"""Training shown in a terminal: a bar with loss, rate and time left, and a line for each evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from recsys_emb.training.trainer import TrainingState


class Silent:
    """Shows nothing."""

    def step(self, progress: TrainingState, steps: int, loss: float) -> None: ...

    def evaluation(self, progress: TrainingState, figures: Mapping[str, float | None], best: bool) -> None: ...

    def warn(self, message: str) -> None: ...


class TerminalReporter:
    """Use as a context; writes to stderr, so that stdout stays free for results."""

    def __init__(self, title: str) -> None:
        self.console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:,.0f} rows/s  left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(title, total=None, loss=float("nan"), rate=0.0)
        self._loss: float | None = None
        self._rate_alpha = 0.02

    def __enter__(self) -> TerminalReporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        self._bar.start()  # at the first step, so that a mistake found before prints nothing else
        self._loss = loss if self._loss is None else self._loss + self._rate_alpha * (loss - self._loss)
        rate = progress.samples_per_second
        self._bar.update(self._task, completed=progress.step, total=steps, loss=self._loss, rate=rate)

    def evaluation(self, progress: TrainingState, figures: Mapping[str, float | None], best: bool) -> None:
        mark = "[green]best[/]" if best else f"lr {progress.learning_rate:.0e}"
        valid = "  ".join(f"{key} {figures[key]:.5f}" for key in islice(figures, 2))  # the main metric and one more
        self.console.print(
            f"epoch {progress.epoch:>3}  step {progress.step:>6,}  valid {valid}  "
            f"{progress.samples_per_second:>7,.0f}/s  {mark}",
            highlight=False,
        )

    def warn(self, message: str) -> None:
        self.console.print(f"warning: {message}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def reporter_of(title: str, silent: bool) -> AbstractContextManager[Silent | TerminalReporter]:
    """What shows a training under this title, or nothing; use as a context."""
    return nullcontext(Silent()) if silent else TerminalReporter(title)
