"""Files by folder and glob, compressed or not, in any encoding that says what it is."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from recsys_emb.data.options import make_source
from recsys_emb.data.sources._files import count_lines, find_files, folder_columns, read_chunks, read_header
from recsys_emb.errors import UserError

TEXT = "y,user,x\n" + "".join(f"{i % 2},é{i % 7}\u2028\x85,{i}\n" for i in range(3000))
PLAIN = TEXT.encode()
ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": lambda raw: pa.Codec("zstd").compress(raw, asbytes=True),
    "lz4": lambda raw: pa.Codec("lz4").compress(raw, asbytes=True),
}
UTF16 = {"little": b"\xff\xfe" + TEXT.encode("utf-16-le"), "big": b"\xfe\xff" + TEXT.encode("utf-16-be")}


def file_of(folder: Path, raw: bytes) -> Path:
    (folder / "rows").write_bytes(raw)
    return folder / "rows"


def check(file: Path) -> None:
    assert b"".join(chunk.text for chunk in read_chunks(file, size=1000)) == PLAIN
    assert (read_header(file), count_lines(file)) == ("y,user,x", 3001)
    options = {"label": "y", "categorical": ["user"], "dense": ["x"]}
    rows = [block.frame for block in make_source("table", file, options=options).blocks()]
    assert pl.concat(rows)["x"].to_list() == list(range(3000))


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archives(tmp_path: Path, kind: str) -> None:
    whole = ARCHIVES[kind](PLAIN)
    check(file_of(tmp_path, whole))
    check(file_of(tmp_path, ARCHIVES[kind](UTF16["little"])))
    for damaged in (whole[: len(whole) // 2], whole[:-3], whole[:40] + bytes(40) + whole[80:]):
        with pytest.raises(UserError, match=f"rows: the {kind} file is .*; download or copy it again") as error:
            b"".join(chunk.text for chunk in read_chunks(file_of(tmp_path, damaged)))
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", UTF16)
def test_utf_16(tmp_path: Path, order: str) -> None:
    check(file_of(tmp_path, UTF16[order]))
    with pytest.raises(UserError, match="begins as UTF-16 text and is none further on"):
        list(read_chunks(file_of(tmp_path, UTF16[order][:-1])))


def test_a_byte_order_mark_of_utf_8_is_no_text(tmp_path: Path) -> None:
    check(file_of(tmp_path, b"\xef\xbb\xbf" + PLAIN))


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"PK\x03\x04\x14\0\x06\0" + bytes(40), "is a zip archive or an Excel workbook; unpack it, or save it as CSV"),
        (b"ARROW1\0\0" + bytes(40), r"is an Arrow \(Feather\) file; write it as Parquet"),
        (b"SQLite format 3\0" + bytes(40), "is an SQLite database; export the table as CSV"),
        (TEXT.encode("utf-16-le"), "UTF-16 text without a byte order mark; convert the text with `iconv"),
        (TEXT.encode("utf-16-be"), "UTF-16 text without a byte order mark"),
    ],
)
def test_what_is_no_text_says_what_to_do(tmp_path: Path, raw: bytes, message: str) -> None:
    options = {"label": "y", "categorical": ["user"]}
    with pytest.raises(UserError, match=message) as error:
        list(make_source("table", file_of(tmp_path, raw), options=options).blocks())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("start", ["BZhour", "PKind", "ORC", "7z"])
def test_a_column_may_be_named_as_an_archive_begins(tmp_path: Path, start: str) -> None:
    assert read_header(file_of(tmp_path, f"{start},y\n1,2\n".encode())) == f"{start},y"


def tree(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("y,user\n1,a\n0,b\n")


def test_folders_and_globs(tmp_path: Path) -> None:
    tree(
        tmp_path,
        *("a/b.csv", "a/_SUCCESS", "a/.b.csv.crc", "a/old/c.csv", "2026/01/x.csv", "2026/02/x.csv", "2026/02/y.tsv"),
        *("log/day=1/hour=2/p.csv", "log/day=1/hour=10/p.csv", "log/day=2/hour=1/p.csv", "log/_temporary/p.csv"),
        "odd[1].csv",
    )

    def found(pattern: str) -> list[str]:
        return [file.relative_to(tmp_path).as_posix() for file in find_files(tmp_path / pattern)]

    assert found("a") == ["a/b.csv"]
    assert found("log") == ["log/day=1/hour=10/p.csv", "log/day=1/hour=2/p.csv", "log/day=2/hour=1/p.csv"]
    assert found("log/day=1") == ["log/day=1/hour=10/p.csv", "log/day=1/hour=2/p.csv"]
    assert found("log/day=*") == found("log")
    assert found("2026/*/x.csv") == ["2026/01/x.csv", "2026/02/x.csv"]
    assert found("2026/0[2]/*") == ["2026/02/x.csv", "2026/02/y.tsv"]
    assert found("20*/**/y.*") == ["2026/02/y.tsv"]
    assert found("odd[1].csv") == ["odd[1].csv"]
    for pattern, message in (
        ("2026", "the folder has no files; name deeper ones by a glob such as '.*2026/"),
        ("2026/*/z.csv", "no file matches"),
        ("nowhere/x.csv", "no such file or folder"),
    ):
        with pytest.raises(UserError, match=message):
            find_files(tmp_path / pattern)


def test_columns_of_folders(tmp_path: Path) -> None:
    assert folder_columns(Path("log/day=2026-11-20/city=New%20York/shop=__HIVE_DEFAULT_PARTITION__/p=1.csv")) == {
        "day": "2026-11-20",
        "city": "New York",
        "shop": None,
    }
    tree(tmp_path, "day=1/p.csv", "day=2/p.csv")
    pl.DataFrame({"y": [1], "user": ["c"]}).write_parquet(tmp_path / "day=2" / "q.parquet")
    options: dict[str, Any] = {"label": "y", "categorical": ["user"], "dense": ["day"], "split": {"time": "day"}}
    options["dense"] = [{"name": "d", "column": "day"}]
    blocks = list(make_source("table", tmp_path, options=options).blocks())
    assert [b.frame["d"].to_list() for b in blocks] == [[1, 1], [2, 2], [2]]
    pl.DataFrame({"y": [1], "user": ["c"], "day": [7]}).write_parquet(tmp_path / "day=2" / "q.parquet")
    blocks = list(make_source("table", tmp_path, options=options).blocks())
    assert blocks[2].frame["d"].to_list() == [7]  # a column of the file goes first
    with pytest.raises(UserError, match=r"p.csv: no column 'hour', which field 'hour' needs; it has 'y', 'user'"):
        list(make_source("table", tmp_path, options={**options, "dense": ["hour"]}).blocks())
