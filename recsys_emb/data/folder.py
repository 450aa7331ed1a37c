"""Makes the folder of a prepared dataset appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from recsys_emb.errors import UserError
from recsys_emb.files import read_json
from recsys_emb.lock import LOCK, sole_writer


@contextmanager
def building(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder ``OUT.partial``, locked, that becomes ``out`` when the block ends, and goes when it fails.

    Raises:
        UserError: ``out`` is a prepared dataset and ``overwrite`` is not set, it is something else, or another process
            is making it.
    """
    check_free(out, overwrite)
    partial = out.with_name(f"{out.name}.partial")
    if partial.exists() and not (partial / LOCK).is_file():
        raise UserError(f"{partial} is in the way; move it, or choose another --out")
    with sole_writer(partial, "this dataset"):
        try:
            check_free(out, overwrite)  # another process may have finished it meanwhile
            _clear(partial)  # what a killed preparation left
            yield partial
            _move(partial, out)
        except BaseException:
            _clear(partial)
            (partial / LOCK).unlink()
            with suppress(OSError):  # the next writer is there already
                partial.rmdir()
            raise
        (out / LOCK).unlink()


def _clear(folder: Path) -> None:
    """Removes all but the lock."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def check_free(out: Path, overwrite: bool) -> None:
    """Raises UserError when ``out`` may not be made or replaced."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not is_prepared(out):
        raise UserError(f"--out {out} exists and is not a prepared dataset; choose another folder")
    if not overwrite:
        raise UserError(f"--out {out} is a prepared dataset already; choose another folder, or pass --overwrite")


def is_prepared(folder: Path) -> bool:
    """Whether ``folder`` was written by ``prepare``."""
    try:
        manifest = read_json(folder / "dataset.json")
    except UserError:
        return False
    return "format_version" in manifest and (folder / "schema.json").is_file()


def checksums(folder: Path) -> dict[str, str]:
    """BLAKE2b (16 bytes, hexadecimal) of every file below ``folder``, by its relative path."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != LOCK)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = pool.map(checksum, files)
        return {f.relative_to(folder).as_posix(): s for f, s in zip(files, sums)}


def checksum(path: Path) -> str:
    """BLAKE2b (16 bytes, hexadecimal) of one file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _move(new: Path, out: Path) -> None:
    if not out.exists():
        new.rename(out)
        return
    old = out.with_name(f"{out.name}.replaced")
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)
