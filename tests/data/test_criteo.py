"""The Criteo format: every value, every malformed line with its number, damaged files."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.data.sources import _files
from recsys_emb.data.sources.base import Block
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.native import criteo as native

GOOD = "1\t" + "\t".join(str(i) for i in range(13)) + "\t" + "\t".join(f"{i:08x}" for i in range(26))


@pytest.fixture(autouse=True, params=["native", "polars"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test with the fast reader, where it can be compiled, and without."""
    if request.param == "polars":
        monkeypatch.setattr(native, "_library", lambda: None)


def line(label: str = "0", integer: str = "5", category: str = "68fd1e64") -> str:
    return "\t".join([label, integer, *["1"] * 12, category, *["05db9164"] * 25])


def read(path: Path, **options: Any) -> list[Block]:
    return list(make_source("criteo", path, options=options).blocks())


def column(blocks: list[Block], name: str) -> list[Any]:
    return [v for b in blocks for v in b.frame[name].to_list()]


def write(folder: Path, lines: list[str], name: str = "train.txt", end: str = "\n") -> Path:
    (folder / name).write_bytes((end.join(lines) + end).encode())
    return folder / name


def test_values(tmp_path: Path) -> None:
    empty = "\t".join(["0"] + [""] * 39)
    path = write(tmp_path, [GOOD, empty, line("1", "-2", "FFFFffff"), line("0", "", "ff")])
    (block,) = read(path)
    assert block.labels.tolist() == [1, 0, 1, 0]
    assert column([block], "I1") == [0, None, -2, None]
    assert column([block], "I13") == [12, None, 1, 1]
    assert column([block], "C1")[:3] == [0, None, 0xFFFFFFFF]
    assert column([block], "C1")[3] not in (0xFF, 0xFFFFFFFF)
    assert column([block], "C26")[:2] == [25, None]
    assert not block.rejected


def test_strings_that_differ_stay_apart(tmp_path: Path) -> None:
    texts = ["ff", "0ff", "000000ff", "00ff", "f", "0", "00", "00000000"]
    (block,) = read(write(tmp_path, [line(category=t) for t in texts]))
    assert len(set(column([block], "C1"))) == len(texts)
    assert column([block], "C1")[2] == 255


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line() + "\t1", "41 columns, expected 40"),
        (line().rsplit("\t", 1)[0], "39 columns, expected 40"),
        ("", "blank line"),
        (line(integer="1.5"), "I1 is not an integer: '1.5'"),
        (line(integer="x"), "I1 is not an integer: 'x'"),
        (line(label="2"), "label is not 0 or 1: '2'"),
        (line(label=""), "label is not 0 or 1: ''"),
        (line(category="68fd1e6g"), "C1 is not hexadecimal: '68fd1e6g'"),
        (line(category="+8fd1e64"), "C1 is not hexadecimal: '+8fd1e64'"),
        (line(category="-8fd1e64"), "C1 is not hexadecimal: '-8fd1e64'"),
        (line(category="068fd1e64"), "C1 is not hexadecimal: '068fd1e64'"),
        (line(category='"'), "C1 is not hexadecimal: '\"'"),
    ],
)
def test_a_malformed_line_is_rejected_by_its_number(tmp_path: Path, bad: str, reason: str) -> None:
    path = write(tmp_path, [line(integer="1"), line(integer="2"), bad, line(integer="3"), GOOD])
    (block,) = read(path)
    assert column([block], "I1") == [1, 2, 3, 0]
    (rejected,) = block.rejected
    assert (rejected.file, rejected.line, rejected.reason, rejected.text) == ("train.txt", 3, reason, bad)


def test_a_line_too_long_does_not_make_up_for_one_too_short(tmp_path: Path) -> None:
    path = write(tmp_path, [line().rsplit("\t", 1)[0], GOOD, line() + "\t"])
    (block,) = read(path)
    assert [r.line for r in block.rejected] == [1, 3]
    assert len(block.labels) == 1


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "train.txt"
    path.write_bytes(GOOD.encode() + b"\n" + line(category="XX").encode().replace(b"XX", b"\xff\xfe") + b"\n")
    (block,) = read(path)
    assert [(r.line, r.reason) for r in block.rejected] == [(2, "not UTF-8 text")]


def test_windows_line_ends_blank_end_and_no_line_end(tmp_path: Path) -> None:
    expected = read(write(tmp_path, [GOOD, line(), GOOD], "a"))
    (tmp_path / "b").write_bytes("\r\n".join([GOOD, line(), GOOD, "", ""]).encode())
    (tmp_path / "c").write_text("\n".join([GOOD, line(), GOOD]))
    (tmp_path / "d").write_text("\ufeff" + "\n".join([GOOD, line(), GOOD]) + "\n\n\n")
    for name in "bcd":
        blocks = read(tmp_path / name)
        assert pl.concat(b.frame for b in blocks).equals(expected[0].frame)
        assert not any(b.rejected for b in blocks)
    bad = write(tmp_path, [GOOD, line(category="zz"), line()], "e", end="\r\n")
    assert [r.text for r in read(bad)[0].rejected] == [line(category="zz")]


def test_small_chunks_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(1)
    lines = [line(str(draw.randrange(2)), str(i), f"{draw.getrandbits(32):08x}") for i in range(500)]
    for bad in (3, 77, 78, 499):
        lines[bad] = "broken"
    path = write(tmp_path, lines)
    whole = read(path)
    original = _files.read_chunks
    monkeypatch.setattr(
        "recsys_emb.data.sources.criteo.read_chunks", lambda file, **options: original(file, size=1000, **options)
    )
    pieces = read(path)
    assert len(whole) == 1
    assert len(pieces) > 50
    assert [r.line for b in pieces for r in b.rejected] == [r.line for r in whole[0].rejected] == [4, 78, 79, 500]
    for name in ("I1", "C1"):
        assert column(pieces, name) == column(whole, name)
    assert np.concatenate([b.split for b in pieces]).tolist() == whole[0].split.tolist()


def test_malformed_lines_of_a_large_chunk(tmp_path: Path) -> None:
    lines = [line(integer=str(i)) for i in range(3000)]  # more than one piece of the careful reader
    bad = [5, 1400, 1401, 2999]
    for i in bad:
        lines[i] = line(integer=f"x{i}")
    (block,) = read(write(tmp_path, lines))
    assert [(r.line, r.reason) for r in block.rejected] == [(i + 1, f"I1 is not an integer: 'x{i}'") for i in bad]
    assert column([block], "I1") == [i for i in range(3000) if i not in bad]


def test_winner_discretisation(tmp_path: Path) -> None:
    values = ["", "-1", "0", "1", "2", "3", "4", "10", "1000", "123456"]
    path = write(tmp_path, [line(integer=v) for v in values])
    source = make_source("criteo", path, options=["dense=winner"])
    (block,) = source.blocks()
    expected = [None if v == "" else int(v) if int(v) <= 2 else math.floor(math.log(int(v)) ** 2) for v in values]
    assert column([block], "I1") == expected
    assert expected[-1] == 137
    assert source.fields().dense == ()
    assert len(source.fields().categorical) == 39


def test_gzip_folder_and_glob(tmp_path: Path) -> None:
    lines = [line(integer=str(i)) for i in range(40)]
    days = tmp_path / "days"
    days.mkdir()
    write(days, lines[:10], "day_0")
    (days / "day_1.gz").write_bytes(gzip.compress(("\n".join(lines[10:]) + "\n").encode()))
    (days / ".hidden").write_text("no")
    for path in (days, days / "day_*"):
        assert column(read(path), "I1") == list(range(40))
    assert column(read(days / "day_1*"), "I1") == list(range(10, 40))


@pytest.mark.parametrize("size", [5, 100, -4])
def test_truncated_gzip(tmp_path: Path, size: int) -> None:
    draw = random.Random(2)
    text = "\n".join(line(category=f"{draw.getrandbits(32):08x}") for _ in range(500))
    (tmp_path / "train.gz").write_bytes(gzip.compress(text.encode())[:size])
    with pytest.raises(UserError, match="gzip file is truncated") as error:
        prepare(make_source("criteo", tmp_path / "train.gz"), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_damaged_gzip(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress((GOOD + "\n").encode() * 50))
    packed[20] ^= 255
    (tmp_path / "train.gz").write_bytes(packed)
    with pytest.raises(UserError, match="gzip file is damaged"):
        read(tmp_path / "train.gz")


def test_missing_and_empty_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read(tmp_path / "nowhere.txt")
    with pytest.raises(UserError, match="no file matches"):
        read(tmp_path / "day_*")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match="the file is empty"):
        read(tmp_path / "empty.txt")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="the folder has no files"):
        read(tmp_path / "folder")
    with pytest.raises(UserError, match="pass --input"):
        make_source("criteo")


def test_splits(tmp_path: Path) -> None:
    path = write(tmp_path, [line(integer=str(i)) for i in range(1000)])
    (block,) = read(path, split="time", ratios="8,1,1")
    assert block.split.tolist() == [0] * 800 + [1] * 100 + [2] * 100
    first, again, other = (read(path, seed=s)[0].split for s in (1, 1, 2))
    assert first.tolist() == again.tolist() != other.tolist()
    assert 750 < np.count_nonzero(first == 0) < 850


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("dens=log1p", "dens: unknown key .did you mean 'dense'"),
        ("dense=log2", "dense: .*'log1p' or 'winner', got 'log2'"),
        ("ratios=1,2", "ratios"),
        ("ratios=1,-1,1", "ratios.1: .*greater than or equal to 0"),
        ("ratios=0,0,0", "ratios: one of train, valid and test must be above 0"),
        ("seed=-1", "seed: .*got -1"),
        ("seed", "expected KEY=VALUE"),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        make_source("criteo", tmp_path, options=[option])
    assert "\n" not in str(error.value)


def test_another_format_is_refused_with_its_first_lines(tmp_path: Path) -> None:
    path = write(tmp_path, ["id,click,hour"] * 20)
    with pytest.raises(UserError, match=r"20 of 20 rows.*train\.txt line 1: 1 columns, expected 40; train\.txt line 2"):
        prepare(make_source("criteo", path), tmp_path / "out")


def test_real_rows(real_data: Path, tmp_path: Path) -> None:
    raw = [row.split("\t") for row in (real_data / "criteo-8k" / "train.txt").read_text().splitlines()]
    manifest = prepare(make_source("criteo", real_data / "criteo-8k" / "train.txt"), tmp_path / "out")
    assert sum(manifest["rows"].values()) == len(raw) == 8000
    assert manifest["rejected"] == 0
    dataset = open_dataset(tmp_path / "out")
    ids = np.concatenate([dataset.split(s).ids.numpy() for s in ("train", "valid", "test")])
    # As many distinct ids in the training split as there are distinct strings.
    code = np.concatenate([b.split for b in make_source("criteo", real_data / "criteo-8k" / "train.txt").blocks()])
    train = [row for row, s in zip(raw, code) if s == 0]
    for position in range(26):
        assert dataset.schema.vocabularies[f"C{position + 1}"] == 1 + len({row[14 + position] for row in train})
    assert ids.shape == (8000, 26)
    clicks = sum(row[0] == "1" for row in train)
    assert manifest["click_rate"]["train"] == pytest.approx(clicks / len(train))
