"""ISO texts against Python's own reader."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_emb.data.iso_times import read_iso, spell_iso

ZONES = st.one_of(st.none(), st.integers(-14 * 60, 14 * 60).map(lambda m: dt.timezone(dt.timedelta(minutes=m))))
TIMES = st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1), timezones=ZONES)


@given(
    st.lists(st.tuples(TIMES, st.sampled_from(["T", " "]), st.sampled_from(["seconds", "microseconds"])), min_size=1)
)
def test_seconds_are_those_of_python(times: list[tuple[dt.datetime, str, str]]) -> None:
    texts = [t.isoformat(sep, spec) for t, sep, spec in times]
    read = read_iso(pl.Series(texts))
    for text, seconds, fraction, zoned in zip(texts, *read.get_columns()):
        parsed = dt.datetime.fromisoformat(text)
        exact = (parsed if parsed.tzinfo else parsed.replace(tzinfo=dt.UTC)) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
        assert (seconds, zoned) == (exact // dt.timedelta(seconds=1), parsed.tzinfo is not None)
        assert fraction == f"{parsed.microsecond:06}".rstrip("0")
    again = [dt.datetime.fromisoformat(text) for text in spell_iso(pl.Series(texts))]
    assert again == [dt.datetime.fromisoformat(text) for text in texts]


@pytest.mark.parametrize(
    "text", ["2026-02-29", "2026-01-31 24:00:00", "31-01-2026", "2026-1-31", "2026-01-31 1:00", "2026-01-31T", "x", ""]
)
def test_what_is_no_time(text: str) -> None:
    texts = pl.Series([text, None, "2026-01-31"])
    assert read_iso(texts)["seconds"].is_null().to_list() == [True, True, False]
    assert spell_iso(texts).to_list() == texts.to_list()
