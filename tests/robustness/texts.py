"""Readers of text formats on damaged files: every line is a good row or a rejected one, and no good row is wrong.

A second parser in plain Python reads the line of every good row again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recsys_emb.data.options import make_source
from recsys_emb.data.sources.base import Block

Row = dict[str, Any]
BOM = b"\xef\xbb\xbf"
SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
"""What Unicode calls white space; Python's strip takes more."""


def lines_of(content: bytes) -> list[bytes]:
    """What counts as lines: a byte order mark and blank lines at the end do not."""
    return content.removeprefix(BOM).rstrip(b"\r\n").split(b"\n")


def check_lines(blocks: Iterator[Block], first: int, last: int, extent: Callable[[int], int]) -> dict[int, Row]:
    """The good rows by their first line. Every line from ``first`` to ``last`` is in one good row or a rejected record.

    ``extent``: how many lines the record at a line takes.
    """
    rows: dict[int, Row] = {}
    good: list[int] = []
    bad: list[int] = []
    for block in blocks:
        assert block.lines is not None
        assert len(block.lines) == len(block.frame)
        rows |= dict(zip(block.lines.tolist(), block.frame.iter_rows(named=True)))
        good += [n for line in block.lines.tolist() for n in range(line, line + extent(line))]
        bad += [r.line for r in block.rejected]
        assert not any("\n" in r.reason for r in block.rejected)
    assert len(set(good)) == len(good), "a line is in two good rows"
    assert len(set(bad)) == len(bad), "a line is rejected twice"
    assert not set(good) & set(bad), "a line is good and rejected"
    # A rejected record may end anywhere: its quotes are not to be trusted.
    behind = {n for line in bad for n in range(line, line + extent(line))}
    assert set(range(first, last + 1)) == set(good) | set(bad) | (behind & set(range(first, last + 1)))
    return rows


# -- tab-separated: Criteo --------------------------------------------------------------------------------------------

_INTEGER, _HEX = re.compile(r" *[+-]?[0-9]+"), re.compile(r"[0-9a-fA-F]{1,8}")


def criteo_text() -> bytes:
    rows = []
    for i in range(8):
        integers = ["" if (i + j) % 4 == 0 else str((i * 7 + j) ** 2 - 3) for j in range(13)]
        strings = ["" if (i * j) % 5 == 4 else f"{(i * 1000003 + j * 7919) % 2**32:08x}" for j in range(26)]
        rows.append("\t".join([str(i % 2), *integers, *strings]))
    return ("\n".join(rows) + "\n").encode()


def read_criteo(file: Path, content: bytes) -> int:
    """Good rows."""
    file.write_bytes(content)
    lines = lines_of(content)
    labelled = lines[0].count(b"\t") >= 39
    rows = check_lines(make_source("criteo", file).inputs(), 1, len(lines), lambda _: 1)
    for line, row in rows.items():
        assert row == criteo_row(lines[line - 1].rstrip(b"\r").decode().split("\t")[labelled:])
    trained = sum(len(b.frame) + len(b.rejected) for b in make_source("criteo", file).blocks())
    assert trained == len(lines)
    return len(rows)


def criteo_row(values: list[str]) -> Row:
    """A line's values; a string of fewer than 8 digits is another value than the one with zeros in front."""
    assert len(values) == 39
    integers, strings = values[:13], values[13:]
    assert all(not v or _INTEGER.fullmatch(v) for v in integers)
    assert all(not v or _HEX.fullmatch(v) for v in strings)
    row: Row = {f"I{i}": int(v) if v else None for i, v in enumerate(integers, 1)}
    return row | {f"C{i}": int(v, 16) + (8 - len(v)) * 2**32 if v else None for i, v in enumerate(strings, 1)}


# -- comma-separated with quotes: table -------------------------------------------------------------------------------

TABLE = {
    "label": "clicked",
    "dense": ["price"],
    "categorical": ["user", "city"],
    "multi_valued": [{"name": "tags", "separator": "|"}],
    "split": {"ratios": [0.8, 0.1, 0.1], "seed": 1},
}
_HEADER = ["clicked", "price", "user", "city", "tags"]


def table_text() -> bytes:
    cities = ["Rome", '"San Jose, CA"', '"the ""Big"" one"', '"two\nlines"', "", "Zürich", '""', "Rome"]
    prices = ["1.5", "", "-3e2", " 7", "0.1", "1e-3", "12", "99"]
    tags = ["a|b", "", "c", "a||b", '"x,y|z"', "|", "é|a", "b"]
    rows = [f"{i % 2},{prices[i]},u{i % 3},{cities[i]},{tags[i]}" for i in range(8)]
    return ("\n".join([",".join(_HEADER), *rows]) + "\n").encode()


def read_table(file: Path, content: bytes) -> int:
    """Good rows."""
    file.write_bytes(content)
    source = make_source("table", file, options=TABLE)
    blocks = list(source.inputs())
    first = content.removeprefix(BOM).split(b"\n")[0].rstrip(b"\r").decode("utf-8", errors="replace")
    header = record([first], 0)[0]
    lines = [_text(line) for line in lines_of(content)]
    found: dict[int, list[str]] = {}

    def extent(line: int) -> int:
        found[line], count = record(lines, line - 1)
        return count

    if len(lines) == 1:
        assert not sum(len(b.frame) + len(b.rejected) for b in blocks)
        return 0
    rows = check_lines(iter(blocks), 2, len(lines), extent)
    for line, row in rows.items():
        assert len(found[line]) == len(header)
        values = dict(zip(header, found[line]))
        assert row["user"] == (values["user"] or None)
        assert row["city"] == (values["city"] or None)
        tags = values["tags"].strip(SPACE)
        if tags[:1] not in ("[", "(", "{"):  # lists as they are printed have a test of their own
            assert row["tags"] == ([tag for item in tags.split("|") if (tag := bare(item))] if tags else None)
        price = values["price"].strip()
        expected = float(price) if price else math.nan
        assert expected == row["price"] or (math.isnan(expected) and row["price"] is None)
    trained = sum(len(b.frame) + len(b.rejected) for b in source.blocks())
    assert trained == sum(len(b.frame) + len(b.rejected) for b in blocks)
    return len(rows)


def bare(item: str) -> str:
    """Without the space and the pair of quotes around it."""
    item = item.strip(SPACE)
    pair = len(item) > 1 and item[0] == item[-1] and item[0] in "'\""
    return item[1:-1].strip(SPACE) if pair else item


def _text(line: bytes) -> str:
    return line.decode("utf-8", errors="surrogateescape")


def record(lines: list[str], start: int) -> tuple[list[str], int]:
    """The values of the record that starts at a line (RFC 4180), none when it is malformed; how many lines it takes."""
    values: list[str] = []
    text, at, count = lines[start], 0, 1
    while True:
        value = ""
        if text[at : at + 1] == '"':
            at += 1
            while text[at : at + 1] != '"' or text[at : at + 2] == '""':
                if at < len(text):
                    value += text[at]
                    at += 2 if text[at] == '"' else 1
                elif start + count < len(lines):
                    text, at, count, value = lines[start + count], 0, count + 1, value + "\n"
                else:
                    return [], count  # never closed
            at += 1
            if text[at : at + 1] != "," and text[at:].strip("\r"):
                return [], count
        else:
            end = text.find(",", at)
            value, at = (text[at:].rstrip("\r"), len(text)) if end < 0 else (text[at:end], end)
            if "\r" in value:
                return [], count
        values.append(value)
        if text[at : at + 1] != ",":
            return values, count
        at += 1
