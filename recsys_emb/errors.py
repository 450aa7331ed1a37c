"""What a user's mistake raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

E = TypeVar("E", bound="SettingError")


class UserError(Exception):
    """A mistake in what the user gave: a config key, a file, a folder, an argument.

    The message is one line: what was wrong, where (file, line, key), what is allowed. Characters of a damaged file that
    would break it, or the terminal, are escaped. The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))


class SettingError(UserError):
    """A setting of an embedding method that cannot be.

    A method does not know how its user wrote the setting (a key of a YAML file, an option of a command, an argument);
    who does says so with :func:`settings_written_as`.

    Attributes:
        setting: ``budget``, ``backend`` or ``options.NAME``, or how the user wrote it once ``written`` is set.
        problem: what is wrong with it and what is allowed.
    """

    written = False

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting, self.problem = setting, problem

    def written_as(self, setting: str) -> Self:
        """The same mistake in a setting that the user wrote so."""
        return _remade(type(self), {**self.__dict__, "setting": setting, "written": True})

    def __reduce__(self) -> tuple[Any, ...]:
        """A worker process hands its error on."""
        return _remade, (type(self), self.__dict__)


def _remade(cls: type[E], attributes: dict[str, Any]) -> E:
    error = cls.__new__(cls)
    SettingError.__init__(error, attributes["setting"], attributes["problem"])
    error.__dict__.update(attributes)
    return error


class BudgetTooSmall(SettingError):
    """A memory budget that a method cannot meet.

    Attributes:
        method: its name.
        min_bytes: what it needs at least.
    """

    def __init__(self, method: str, budget: int, min_bytes: int, also: str = "") -> None:
        problem = f"{method} cannot fit in {budget:,} bytes{also}; the least it can reach is {min_bytes:,} bytes"
        super().__init__("budget", problem)
        self.method, self.min_bytes = method, min_bytes


@contextmanager
def settings_written_as(name: Callable[[str], str]) -> Iterator[None]:
    """Errors of settings that are raised inside carry the name under which the user wrote them.

    Args:
        name: ``budget``, ``backend`` or ``options.NAME`` -> the user's own words, e.g. ``embedding.budget``.
    """
    try:
        yield
    except SettingError as error:
        if error.written:
            raise
        raise error.written_as(name(error.setting)) from None


class LostProcess(Exception):
    """Another process of a run on several ended, so this one cannot go on; why, the other one says."""
