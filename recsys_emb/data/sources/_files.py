"""Text files, plain or gzip, one or many, in chunks of whole records."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from recsys_emb.errors import UserError

CHUNK_BYTES = 1 << 24
_GLOB = set("*?[")


def find_files(path: Path | None) -> list[Path]:
    """The files that ``--input`` names: a file, the files of a folder, or a glob; sorted by name.

    Raises:
        UserError: nothing is there.
    """
    if path is None:
        raise UserError("--input: missing; give a file, a folder or a glob in quotes")
    if path.is_dir():
        files = sorted(f for f in path.iterdir() if f.is_file() and not f.name.startswith((".", "_")))
        if not files:
            raise UserError(f"--input {path}: the folder has no files")
        return files
    if path.exists():
        return [path]
    if _GLOB & set(path.name):
        files = sorted(f for f in path.parent.glob(path.name) if f.is_file())
        if files:
            return files
        raise UserError(f"--input {path}: no file matches")
    raise UserError(f"--input {path}: no such file or folder")


@dataclass(frozen=True)
class Chunk:
    """Whole records of a file, the number of the first line, from 1, and how many lines there are."""

    file: Path
    text: bytes
    first_line: int
    lines: int

    def split(self, at: int) -> tuple[Chunk, Chunk]:
        """The records before and after byte ``at``."""
        first = _chunk(self.file, self.text[:at], self.first_line)
        return first, Chunk(self.file, self.text[at:], self.first_line + first.lines, self.lines - first.lines)


def read_chunks(
    file: Path, *, quote: str | None = None, header: bool = False, size: int = CHUNK_BYTES
) -> Iterator[Chunk]:
    """The records of a file in chunks of about ``size`` bytes; a record may hold line ends between quotes.

    Args:
        file: plain or gzip, told apart by its first bytes.
        quote: the character around values that hold separators or line ends.
        header: leave out the first line.

    Raises:
        UserError: the file cannot be read, or is a damaged or truncated gzip.
    """
    with _opened(file) as stream:
        line = 1
        if header:
            stream.readline()
            line = 2
        rest = b""
        while piece := stream.read(size):
            text = b"".join((rest, piece, stream.readline()))
            if line == 1:
                text = text.removeprefix(b"\xef\xbb\xbf")
            end = last_record_end(text, quote)
            if end == 0 and len(text) > 4 * size:  # an unbalanced quote must not collect the whole file
                end = text.rfind(b"\n") + 1
            rest = text[end:]
            if end:
                chunk = _chunk(file, text[:end], line)
                line += chunk.lines
                yield chunk
        if rest.strip(b"\r\n"):
            yield _chunk(file, rest.rstrip(b"\r\n") + b"\n", line)


def _chunk(file: Path, text: bytes, first_line: int) -> Chunk:
    return Chunk(file, text, first_line, count_bytes(text, b"\n"))


def read_header(file: Path) -> str:
    """The first line of a file. Raises UserError when the file is empty or cannot be read."""
    with _opened(file) as stream:
        line = stream.readline(1 << 20)
    if not line.strip():
        raise UserError(f"{file}: the file is empty")
    return line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").rstrip("\r\n")


def count_lines(file: Path) -> int:
    """Lines of a file, the last one with or without a line end."""
    return sum(chunk.lines for chunk in read_chunks(file))


def count_bytes(text: bytes, byte: bytes) -> int:
    # Several times faster than bytes.count where the byte is frequent.
    return int(np.count_nonzero(np.frombuffer(text, dtype=np.uint8) == ord(byte)))


def outside_quotes(text: bytes, quote: str) -> np.ndarray:
    """bool [bytes]: whether each byte stands outside quoted values, when ``text`` starts outside."""
    return ~np.logical_xor.accumulate(np.frombuffer(text, dtype=np.uint8) == ord(quote))


def last_record_end(text: bytes, quote: str | None) -> int:
    """Position after the last record of ``text``, blank lines behind it left out; 0 when none is complete."""
    end = text.rfind(b"\n") + 1
    while text.endswith((b"\n\n", b"\n\r\n"), 0, end) or (end <= 2 and text[:end] in (b"\n", b"\r\n")):
        end = text.rfind(b"\n", 0, end - 1) + 1
    if quote is None or quote.encode() not in text:
        return end
    ends = np.flatnonzero((np.frombuffer(text, dtype=np.uint8) == ord("\n")) & outside_quotes(text, quote))
    ends = ends[ends < end]
    return int(ends[-1]) + 1 if len(ends) else 0


@contextmanager
def _opened(file: Path) -> Iterator[IO[bytes]]:
    try:
        with open(file, "rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                yield raw
                return
            with gzip.open(raw, "rb") as stream:
                yield stream  # type: ignore[misc]
    except EOFError:
        raise UserError(f"{file}: the gzip file is truncated; download or copy it again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{file}: the gzip file is damaged ({error}); download or copy it again") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None
