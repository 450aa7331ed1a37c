"""What torchrun tells a process that it starts. Imports nothing heavy, so that commands stay quick."""

from __future__ import annotations

import os


def started_by_torchrun() -> bool:
    """Whether this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """Which of them; the first, 0, writes and shows."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of those on this machine: it takes the device of this number."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_size() -> int:
    """How many there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def attempt() -> int:
    """How many times torchrun (``--max-restarts``) has started the processes again after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
