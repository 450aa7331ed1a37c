"""Criteo's text in C++: Python's own numbers, and nothing that the slow reader would read otherwise."""

from __future__ import annotations

import random

import numpy as np
import pytest

from recsys_emb.data.sources import criteo as source
from recsys_emb.data.sources._files import Chunk
from recsys_emb.native import criteo
from recsys_emb.native.criteo import FIELDS, parse

pytestmark = pytest.mark.skipif(criteo._library() is None, reason="no C++ compiler or no AVX2")

NAMES = source.INTEGERS + source.CATEGORIES


def values(draw: random.Random) -> list[str]:
    """A line's texts: integers of 1 to 18 digits, hexadecimal numbers of 1 to 8, in either case, some left out."""
    integers = [str(draw.randint(-(10**k), 10**k)) for k in draw.choices(range(18), k=len(source.INTEGERS))]
    widths = draw.choices([8, 8, 8, *range(1, 8)], k=len(source.CATEGORIES))
    digits = ["".join(draw.choices("0123456789abcdefABCDEF", k=w)) for w in widths]
    return [text if draw.random() < 0.8 else "" for text in integers + digits]


def joined(lines: list[list[str]]) -> bytes:
    return "".join("\t".join(line) + "\n" for line in lines).encode()


def number(column: int, text: str) -> int | None:
    if not text:
        return None
    return int(text) if column < len(source.INTEGERS) else int(text, 16) + (8 - len(text)) * 2**32


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 300])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_numbers_are_those_of_python(rows: int, labelled: bool) -> None:
    draw = random.Random(rows)
    lines = [values(draw) for _ in range(rows)]
    labels = [draw.randint(0, 1) if labelled else 0 for _ in range(rows)]
    text = joined([[str(y), *line] for y, line in zip(labels, lines)] if labelled else lines)
    found = parse(text, rows, NAMES, labelled)
    assert found is not None
    frame, found_labels = found
    assert found_labels.dtype == np.uint8
    assert found_labels.tolist() == labels
    assert frame.columns == list(NAMES)
    for column, name in enumerate(NAMES):
        assert frame[name].to_list() == [number(column, line[column]) for line in lines]
        assert frame[name].null_count() == sum(not line[column] for line in lines)


GOOD = [["1", *["5"] * 13, *["0a1b2c3d"] * 26]]


@pytest.mark.parametrize(
    ("column", "text"),
    [(0, t) for t in ["", "2", "-1", "01", " 1", "1.0", '"1"']]
    + [(1, t) for t in ["+5", " 5", "5 ", "-", "--5", "5.0", "1e3", "x", "1234567890123456789", "٥"]]
    + [
        (c, t)
        for c in (14, 39)
        for t in ["g", "+f", "-f", "0x1f", "123456789", "1234567g", "@234567`", " ff", "\u00e9"]
    ]
    + [(39, "5\r"), (20, "0a1b\n2c3d"), (20, "a\tb"), (5, "\0")],
)
def test_anything_else_is_left_to_the_slow_reader(column: int, text: str) -> None:
    assert parse(joined(GOOD * 3), 3, NAMES, True) is not None
    bad = [*GOOD[0][:column], text, *GOOD[0][column + 1 :]]
    assert parse(joined([*GOOD, bad, *GOOD]), 3, NAMES, True) is None


def test_lines_that_are_cut_or_blank_are_left_to_the_slow_reader() -> None:
    text = joined(GOOD * 2)
    for cut in range(len(text)):
        assert parse(text[:cut], 2, NAMES, True) is None
        shorter_last_value = cut > text.rindex(b"\t")
        assert (parse(text[:cut] + b"\n", 2, NAMES, True) is None) != shorter_last_value
    assert parse(text + b"\n", 3, NAMES, True) is None
    assert parse(text, 3, NAMES, True) is None
    assert parse(text, 1, NAMES, True) is None


def test_damaged_text_is_read_as_the_slow_reader_reads_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, fast = random.Random(1), 0
    for _ in range(400):
        text = bytearray(joined([["1", *values(draw)] for _ in range(4)]))
        for _ in range(draw.randint(0, 2)):
            text[draw.randrange(len(text) - 1)] = draw.choice(b'01-+ \t\nfFgG\r"\x00\xff')
        chunk = Chunk(tmp_path / "train.txt", bytes(text), 1, text.count(b"\n"))
        found = parse(chunk.text, chunk.lines, NAMES, True)
        if found is None:
            continue
        fast += 1
        with monkeypatch.context() as patched:
            patched.setattr(criteo, "_library", lambda: None)
            frame, labels, rejected = source._labelled(chunk)
        assert not rejected
        assert found[0].equals(frame)
        assert found[1].tolist() == labels.tolist()
    assert fast > 100


def test_there_are_as_many_columns_as_the_format_has() -> None:
    assert len(NAMES) == FIELDS
