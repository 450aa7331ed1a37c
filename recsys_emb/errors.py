"""What a user's mistake raises."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: a config key, a file, a folder, an argument.

    The message is one line: what was wrong, where (file, line, key), what is allowed. Characters of a damaged file that
    would break it, or the terminal, are escaped. The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))

    def reworded(self, message: str) -> UserError:
        """The same mistake in other words, for who knows better what the user wrote."""
        return type(self)(message)


class BudgetTooSmall(UserError):
    """A memory budget that a method cannot meet; the message says the least bytes that it can.

    Attributes:
        least: these bytes.
    """

    def __init__(self, message: str, least: int) -> None:
        super().__init__(message)
        self.least = least

    def reworded(self, message: str) -> BudgetTooSmall:
        return BudgetTooSmall(message, self.least)

    def __reduce__(self) -> tuple[type[BudgetTooSmall], tuple[str, int]]:
        """A worker process hands its error on."""
        return BudgetTooSmall, (str(self), self.least)


class LostProcess(Exception):
    """Another process of a run on several ended, so this one cannot go on; why, the other one says."""
