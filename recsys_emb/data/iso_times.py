"""Dates and times as texts (ISO 8601, year first): read to seconds, and spelled in one way by value."""

from __future__ import annotations

import polars as pl

_PLAIN = "%Y-%m-%d %H:%M:%S"
_ISO = (
    r"^([0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ]([0-9]{2}:[0-9]{2})(:[0-9]{2}(?:[.,]([0-9]+))?)? ?(?:(Z|UTC)|([+-][0-9]{2}):?([0-9]{2})?)?)?$"
)


def read_iso(texts: pl.Series) -> pl.DataFrame:
    """What texts such as ``2026-01-31``, ``2026-01-31 12:00:00.5`` and ``2026-01-31T12:00:00+01:00`` say.

    Returns:
        ``seconds`` Int64 since 1970, in UTC where the text has a zone, null where it is none of these; ``fraction``
        String, the digits after the second without zeros at the end; ``zoned`` Boolean, whether there is a zone.
    """
    plain = (texts.str.len_bytes() == len("2026-01-31 12:00:00")).fill_null(True)
    if plain.all():
        seconds = _seconds(texts.str.replace("T", " ", literal=True))
        if seconds.null_count() == texts.null_count():
            return pl.DataFrame({"seconds": seconds}).with_columns(fraction=pl.lit(""), zoned=pl.lit(False))
    parts = texts.to_frame("text").select(pl.col("text").str.extract_groups(_ISO).alias("part")).unnest("part")
    day, minute, second, fraction, utc, hours, minutes = (pl.col(name) for name in parts.columns)
    sign = pl.when(hours.str.starts_with("-")).then(-1).otherwise(1)
    offset = hours.cast(pl.Int64) * 3600 + sign * minutes.fill_null("0").cast(pl.Int64) * 60
    clock = pl.concat_str(day, pl.lit(" "), minute.fill_null("00:00"), second.str.head(3).fill_null(":00"))
    read = parts.select(
        clock.alias("clock"),
        offset.fill_null(0).alias("offset"),
        fraction.fill_null("").str.strip_chars_end("0").alias("fraction"),
        (utc.is_not_null() | hours.is_not_null()).alias("zoned"),
    )
    return read.select((_seconds(read["clock"]) - pl.col("offset")).alias("seconds"), "fraction", "zoned")


def spell_iso(texts: pl.Series) -> pl.Series:
    """String [n]: one text for every time, whatever its digits and zone; what is no time stays.

    ``2026-01-31`` at midnight, else ``2026-01-31 12:00:00`` with the fraction that there is; with a zone
    ``2026-01-31 11:00:00Z``, always in UTC and with the time of day.
    """
    read = read_iso(texts).with_columns(text=texts, clock=pl.from_epoch("seconds").dt.to_string(_PLAIN))
    fraction = pl.when(pl.col("fraction") != "").then(pl.lit(".") + pl.col("fraction")).otherwise(pl.lit(""))
    midnight = ~pl.col("zoned") & (pl.col("seconds") % 86400 == 0) & (pl.col("fraction") == "")
    spelled = (
        pl.when(midnight)
        .then(pl.col("clock").str.head(10))
        .otherwise(pl.col("clock") + fraction + pl.when("zoned").then(pl.lit("Z")).otherwise(pl.lit("")))
    )
    return read.select(pl.coalesce(spelled, "text"))["clock"].alias(texts.name)


def _seconds(clocks: pl.Series) -> pl.Series:
    times = clocks.str.to_datetime(_PLAIN, strict=False, time_unit="us", cache=False)
    return times.dt.epoch("s").alias("seconds")
