"""A split by time over files of unlike times: in the order of the times, or one line that names both files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_emb.data.options import make_source
from recsys_emb.data.sources.base import Block
from recsys_emb.errors import UserError

Write = Callable[[Path, Sequence[dt.datetime]], Path]
FEBRUARY = [dt.datetime(2026, 2, 1) + dt.timedelta(hours=h) for h in range(20)]
JANUARY = [dt.datetime(2026, 1, 1) + dt.timedelta(hours=h) for h in range(60)]


def seconds(time: dt.datetime) -> int:
    return int(time.replace(tzinfo=dt.UTC).timestamp())


def parquet(make: Callable[[dt.datetime], object], kind: pa.DataType | None = None) -> Write:
    def write(stem: Path, times: Sequence[dt.datetime]) -> Path:
        column = pa.array([make(t) for t in times], kind)
        pq.write_table(pa.table({"y": [i % 2 for i in range(len(times))], "when": column}), f"{stem}.parquet")
        return Path(f"{stem}.parquet")

    return write


def csv(make: Callable[[dt.datetime], object]) -> Write:
    def write(stem: Path, times: Sequence[dt.datetime]) -> Path:
        rows = "".join(f"{i % 2},{make(t)}\n" for i, t in enumerate(times))
        Path(f"{stem}.csv").write_text("y,when\n" + rows)
        return Path(f"{stem}.csv")

    return write


def same(time: dt.datetime) -> dt.datetime:
    return time


def utc(time: dt.datetime) -> dt.datetime:
    return time.replace(tzinfo=dt.UTC)


def dictionary(stem: Path, times: Sequence[dt.datetime]) -> Path:
    column = pa.array(times, pa.timestamp("us")).dictionary_encode()
    pq.write_table(pa.table({"y": [i % 2 for i in range(len(times))], "when": column}), f"{stem}.parquet")
    return Path(f"{stem}.parquet")


LOCAL: dict[str, Write] = {
    **{f"timestamp[{u}]": parquet(same, pa.timestamp(u)) for u in ("s", "ms", "us", "ns")},
    "dictionary": dictionary,
    "date": parquet(lambda t: t.date(), pa.date32()),
    "ISO": csv(same),
    "ISO with T and fraction": csv(lambda t: f"{t.isoformat()}.000500"),
    "slashes, year first": csv(lambda t: f"{t:%Y/%m/%d %H:%M}"),
    "ISO in a Parquet file": parquet(str),
}
ZONED: dict[str, Write] = {
    "UTC": parquet(utc, pa.timestamp("us", "UTC")),
    "New York": parquet(utc, pa.timestamp("ms", "America/New_York")),
    "Z": csv(lambda t: f"{t.isoformat()}Z"),
    "+02:00": csv(lambda t: str(utc(t).astimezone(dt.timezone(dt.timedelta(hours=2))))),
}
NUMBERS: dict[str, Write] = {
    "int64": parquet(seconds),
    "uint32": parquet(seconds, pa.uint32()),
    "float64": parquet(lambda t: float(seconds(t))),
    "decimal": parquet(lambda t: Decimal(seconds(t))),
    "text": csv(seconds),
    "text of floats": csv(lambda t: f"{seconds(t)}.25"),
}
OTHERS: dict[str, Write] = {
    "ms": parquet(lambda t: seconds(t) * 10**3),
    "us": csv(lambda t: seconds(t) * 10**6),
    "ns": parquet(lambda t: seconds(t) * 10**9),
    "YYYYMMDD": csv(lambda t: f"{t:%Y%m%d}"),
}


def read(folder: Path, **split: object) -> list[Block]:
    spec = {"time": "when", "ratios": [0.5, 0.25, 0.25], **split}
    options = {"label": "y", "categorical": [{"name": "c", "column": "when"}], "split": spec}
    return list(make_source("table", folder, options=options).blocks())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        *((LOCAL[a], LOCAL[b]) for a, b in zip(LOCAL, [*list(LOCAL)[1:], "timestamp[s]"])),
        *((LOCAL["timestamp[us]"], LOCAL[b]) for b in ("timestamp[ms]", "timestamp[ns]", "date", "ISO")),
        *((ZONED[a], ZONED[b]) for a in ZONED for b in ZONED),
        *((NUMBERS[a], NUMBERS[b]) for a in NUMBERS for b in ("int64", "text", "float64")),
    ],
)
def test_the_order_over_two_files_is_that_of_the_times(tmp_path: Path, first: Write, second: Write) -> None:
    """The newest 20 of 80 rows are February's, which stand in the file that is read first."""
    first(tmp_path / "a", FEBRUARY)
    second(tmp_path / "b", JANUARY)
    blocks = read(tmp_path)
    assert not any(b.rejected for b in blocks)
    assert np.concatenate([b.split for b in blocks]).tolist() == [2] * 20 + [0] * 40 + [1] * 20


@pytest.mark.parametrize(
    ("first", "second", "kinds"),
    [
        *((LOCAL[a], NUMBERS[b], ("a time without a zone", "a number")) for a in ("ISO", "date") for b in NUMBERS),
        *((NUMBERS[a], LOCAL[b], ("a number", "a time without a zone")) for a in NUMBERS for b in ("ISO", "date")),
        *((LOCAL[a], ZONED[b], ("a time without a zone", "a time with a zone")) for a in LOCAL for b in ("Z", "UTC")),
        (ZONED["New York"], OTHERS["ms"], ("a time with a zone", "a number")),
    ],
)
def test_unlike_times_are_refused_by_both_files(
    tmp_path: Path, first: Write, second: Write, kinds: tuple[str, str]
) -> None:
    a, b = first(tmp_path / "a", FEBRUARY), second(tmp_path / "b", JANUARY)
    message = (
        rf"^split.time: column 'when' is {kinds[0]} in {a.name} line [12] .* and {kinds[1]} in {b.name} line [12] .*"
    )
    with pytest.raises(UserError, match=f"{message}; give all rows one kind$"):
        read(tmp_path)


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("number", ["int64", "text"])
def test_numbers_of_unlike_units_are_refused_by_both_files(tmp_path: Path, other: str, number: str) -> None:
    a, b = OTHERS[other](tmp_path / "a", FEBRUARY), NUMBERS[number](tmp_path / "b", JANUARY)
    unit = {"ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}.get(other)
    like = "YYYYMMDD" if unit is None else f"{unit} since 1970"
    message = f"looks like {like} in {a.name} line . .* and like seconds since 1970 in {b.name} line .* one unit"
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_unlike_units_in_one_file_are_refused_by_their_lines(tmp_path: Path) -> None:
    times = [seconds(t) for t in JANUARY]
    parquet(lambda t: seconds(t) * (1000 if t.day == 2 else 1))(tmp_path / "a", JANUARY)
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert f"seconds since 1970 in a.parquet line 2 ({times[0]})" in str(error.value)
    assert f"milliseconds since 1970 in a.parquet line 26 ({times[24]}000)" in str(error.value)


@pytest.mark.parametrize(
    "numbers",
    [
        list(range(80)),
        [10**7 * i for i in range(80)],  # 0 to 8e8: a count that ends where seconds since 1970 begin
        [i**7 for i in range(80)],  # passes through every unit
        [4 * 10**10 * i for i in range(80)],  # milliseconds from an arbitrary start
    ],
)
def test_numbers_that_count_are_only_compared(tmp_path: Path, numbers: list[int]) -> None:
    rows = iter(numbers[::-1])
    csv(lambda _: next(rows))(tmp_path / "a", JANUARY[:30])
    parquet(lambda _: next(rows))(tmp_path / "b", JANUARY[:50])
    assert np.concatenate([b.split for b in read(tmp_path)]).tolist() == [2] * 20 + [1] * 20 + [0] * 40


def test_rows_of_another_kind_than_the_others_are_rejected(tmp_path: Path) -> None:
    texts = iter([*(str(t) for t in JANUARY[:40]), "1700000000", "2026-01-01T10:00:00Z", "soon", "", "1e400"])
    csv(lambda _: next(texts))(tmp_path / "a", JANUARY[:45])
    (block,) = read(tmp_path)
    assert block.split.tolist() == [0] * 20 + [1] * 10 + [2] * 10
    none = "time is neither a number nor a date, year first (else give split.time_format)"
    assert [(r.line, r.reason) for r in block.rejected] == [
        (42, "time is a number, others are a time without a zone: '1700000000'"),
        (43, "time is a time with a zone, others are a time without a zone: '2026-01-01T10:00:00Z'"),
        (44, f"{none}: 'soon'"),
        (45, f"{none}: ''"),
        (46, f"{none}: '1e400'"),
    ]


# -- dates that do not begin with the year ----------------------------------------------------------------------------

DAYS = [dt.datetime(2026, month, day) for month in range(1, 9) for day in range(1, 11)]  # all days below 13


@pytest.mark.parametrize("form", ["%m/%d/%Y", "%d/%m/%Y", "%d.%m.%Y %H:%M", "%b %d %Y"])
def test_day_and_month_are_told_apart_by_time_format_alone(tmp_path: Path, form: str) -> None:
    csv(lambda t: f"{t:{form}}")(tmp_path / "a", DAYS[::-1])
    (block,) = read(tmp_path)
    assert not len(block.frame)
    assert block.rejected[0].reason.endswith(f"(else give split.time_format): '{DAYS[-1]:{form}}'")
    (block,) = read(tmp_path, time_format=form)
    assert not block.rejected
    assert block.split.tolist() == [2] * 20 + [1] * 20 + [0] * 40


def test_time_format_of_integers_and_with_zones(tmp_path: Path) -> None:
    parquet(lambda t: int(f"{t:%Y%m%d}"))(tmp_path / "a", FEBRUARY)
    csv(lambda t: f"{t:%Y%m%d}")(tmp_path / "b", JANUARY)
    parquet(lambda t: t.date(), pa.date32())(tmp_path / "c", DAYS[:1])
    assert np.concatenate([b.split for b in read(tmp_path, time_format="%Y%m%d")])[:20].tolist() == [2] * 20
    one = tmp_path / "zones"
    one.mkdir()
    hours = iter([0, 5, 3, 1])  # the same clock, so the further east the earlier
    csv(lambda t: f"10:00 {t:%d.%m.%Y} +0{next(hours)}00")(one / "a", JANUARY[:4])
    (block,) = read(one, time_format="%H:%M %d.%m.%Y %z")
    assert block.split.tolist() == [2, 0, 0, 1]


def test_time_format_that_is_none(tmp_path: Path) -> None:
    csv(lambda t: f"{t:%H}")(tmp_path / "a", JANUARY)
    with pytest.raises(UserError, match=r"split\.time_format: '%H' is no form of a date"):
        read(tmp_path, time_format="%H")
    with pytest.raises(UserError, match="time_format says how the texts of time are written; give time too"):
        make_source("table", tmp_path, options={"label": "y", "categorical": ["x"], "split": {"time_format": "%Y"}})
