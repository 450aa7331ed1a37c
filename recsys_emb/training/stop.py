"""Asks a training to stop: Ctrl-C and SIGTERM set a mark that it looks at where its state is whole."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Stopped(Exception):
    """A run was asked to stop; what it has done is in its folder.

    Attributes:
        signal: that asked, SIGINT or SIGTERM.
    """

    def __init__(self, signal: signal.Signals, message: str = "stopped before the run began") -> None:
        super().__init__(message)
        self.signal = signal

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells have it: 130 or 143."""
        return 128 + self.signal


class StopMark:
    """Whether somebody asked to stop.

    Attributes:
        signal: number of the signal that asked, 0 while nobody has.
        alone: one process computes; several have to stop at the same place, which is after a step.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.alone = True

    def check(self) -> None:
        """Raises Stopped when somebody asked."""
        if self.signal:
            raise Stopped(signal.Signals(self.signal))

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The items; raises Stopped between two of them."""
        for item in items:
            if self.alone:
                self.check()
            yield item


@contextmanager
def stop_on_signals() -> Iterator[StopMark]:
    """Turns the first Ctrl-C or SIGTERM into a mark; a second one acts at once, as it does without this.

    Only in the main thread, where Python handles signals.
    """
    mark = StopMark()

    def handle(number: int, frame: FrameType | None) -> None:
        mark.signal = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield mark
    finally:
        restore()
