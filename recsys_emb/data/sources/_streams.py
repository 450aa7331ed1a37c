"""The bytes of a text file as UTF-8, however it is compressed; what is no text is refused with what to do."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol

import pyarrow as pa

from recsys_emb.errors import UserError
from recsys_emb.files import one_line


class Stream(Protocol):
    """What is read of a file."""

    def read(self, size: int, /) -> bytes: ...

    def readline(self, limit: int = -1, /) -> bytes: ...


class _Peekable(Stream, AbstractContextManager, Protocol):  # type: ignore[type-arg]
    def peek(self, size: int = 0, /) -> bytes: ...


_COMPRESSED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
)
_OTHERS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "unpack it, or save it as CSV"),
    (b"PAR1", "a Parquet file", "this source reads text"),
    (b"ARROW1", "an Arrow (Feather) file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
)
_DAMAGES = (gzip.BadGzipFile, zlib.error, lzma.LZMAError, pa.ArrowException)


@contextmanager
def opened(file: Path) -> Iterator[Stream]:
    """The text of a file, decompressed and in UTF-8.

    Plain, gzip, bz2, xz, zstd and lz4 are told apart by their first bytes, UTF-16 by its byte order mark.

    Raises:
        UserError: the file cannot be read, is a damaged or truncated archive, or is no text.
    """
    kind = None
    try:
        with open(file, "rb") as raw, ExitStack() as stack:
            start = raw.read(16)
            raw.seek(0)
            kind = next((name for magic, name in _COMPRESSED if start.startswith(magic)), None)
            if kind == "bz2" and not start[4:].startswith(b"1AY&SY"):  # a name of a column that begins so
                kind = None
            stream = raw if kind is None else stack.enter_context(_decompressed(raw, kind))
            yield _as_utf8(file, stream)
    except EOFError:
        raise UserError(f"{file}: the {kind} file is truncated; download or copy it again") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: begins as UTF-16 text and is none further on; write it as UTF-8") from None
    except _DAMAGES as error:
        raise UserError(f"{file}: the {kind} file is damaged ({one_line(error)}); download or copy it again") from None
    except OSError as error:
        if kind is not None and error.errno is None:  # of a decompressor
            raise UserError(
                f"{file}: the {kind} file is damaged or truncated ({one_line(error)}); download or copy it again"
            ) from None
        raise UserError(f"{file}: cannot be read ({error.strerror or error})") from None


def _decompressed(raw: IO[bytes], kind: str) -> _Peekable:
    if kind == "gzip":
        return gzip.open(raw, "rb")  # type: ignore[return-value]
    if kind == "bz2":
        return bz2.open(raw, "rb")
    if kind == "xz":
        return lzma.open(raw, "rb")
    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), kind), 1 << 20)


def _as_utf8(file: Path, stream: _Peekable) -> Stream:
    start = stream.peek(1 << 12)[: 1 << 12]
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _FromUTF16(io.TextIOWrapper(stream, "utf-16", newline="\n"))  # type: ignore[arg-type]
    for magic, what, advice in _OTHERS:
        if start.startswith(magic) and b"\0" in start:
            raise UserError(f"{file}: is {what}; {advice}")
    if start.count(b"\0") > len(start) / 4:
        raise UserError(
            f"{file}: is binary, or UTF-16 text without a byte order mark; convert the text with "
            "`iconv -f UTF-16LE -t UTF-8`"
        )
    return stream


class _FromUTF16:
    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text

    def read(self, size: int, /) -> bytes:
        return self._text.read(size).encode()

    def readline(self, limit: int = -1, /) -> bytes:
        return self._text.readline(limit).encode()
