"""The files of a folder or glob, and text files in chunks of whole records."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np

from recsys_emb.data.sources._streams import opened
from recsys_emb.errors import UserError

CHUNK_BYTES = 1 << 24
_GLOB = set("*?[")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def find_files(path: Path | None) -> list[Path]:
    """The files that ``--input`` names: a file, the files of a folder, or what a glob matches; sorted by name.

    Of the folders in a folder only those named ``column=value`` are looked into, as Hive and Spark name them.

    Raises:
        UserError: nothing is there.
    """
    if path is None:
        raise UserError("--input: missing; give a file, a folder or a glob in quotes")
    if path.is_dir():
        files = _in_folder(path)
        if not files:
            raise UserError(f"--input {path}: the folder has no files; name deeper ones by a glob such as '{path}/*/*'")
        return files
    if path.exists():
        return [path]
    if _GLOB & set(str(path)):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        files = sorted({f for m in matches for f in (_in_folder(m) if m.is_dir() else [m])})
        if files:
            return files
        raise UserError(f"--input {path}: no file matches")
    raise UserError(f"--input {path}: no such file or folder")


def _in_folder(folder: Path) -> list[Path]:
    files = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith((".", "_")):
            continue
        if entry.is_file():
            files.append(entry)
        elif entry.is_dir() and "=" in entry.name:
            files += _in_folder(entry)
    return files


def folder_columns(file: Path) -> dict[str, str | None]:
    """What the names of a file's folders say, ``column=value``: the columns of a table that is kept by their values."""
    pairs = (folder.partition("=") for folder in file.parts[:-1])
    values = {name: unquote(value) for name, equals, value in pairs if equals and name}
    return {name: None if value == _HIVE_NULL else value for name, value in values.items()}


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
        file: plain or compressed (_streams.py).
        quote: the character around values that hold separators or line ends.
        header: leave out the first line.

    Raises:
        UserError: the file cannot be read.
    """
    with opened(file) as stream:
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
    with opened(file) as stream:
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
