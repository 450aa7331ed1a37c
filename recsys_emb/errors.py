"""What a user's mistake raises."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: a config key, a file, a folder, an argument.

    The message is one line: what was wrong, where (file, line, key), what is allowed.
    The command line prints it without a traceback and exits with code 2.
    """


class OutOfReach(UserError):
    """A memory budget that a method cannot meet; the message says the least bytes that it can."""
