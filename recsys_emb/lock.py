"""One writer a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from recsys_emb.errors import UserError

LOCK = "LOCK"


@contextmanager
def sole_writer(folder: Path, what: str) -> Iterator[None]:
    """Makes the folder and holds its ``LOCK`` (flock), which the system lets go when the process ends, however it ends.

    The holder may move the folder, or remove it with ``LOCK`` as its last file.

    Args:
        folder: where to write.
        what: it holds, for messages: ``this run``.

    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    try:
        while (descriptor := _locked(folder, what)) is None:
            pass
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror}); name another folder") from None
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Other processes wait for the end of the block before they enter one of the same folder, which need not exist."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _locked(folder: Path, what: str) -> int | None:
    """The open ``LOCK``, held; None when the holder before moved or removed the folder meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise UserError(
            f"{folder}: another process (id {holder}) is writing {what}; wait for it, or name another folder"
        ) from None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), os.stat(folder / LOCK)):
            return descriptor
    os.close(descriptor)
    return None
