"""Reading the published Amazon review files: who bought what in which order, and the category of each item."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from recsys_emb.data.sources._files import Chunk, read_chunks
from recsys_emb.data.sources.base import Note, Rejected
from recsys_emb.errors import UserError

CHUNK_BYTES = 32 << 20

_REVIEW = {"reviewerID": pl.String, "asin": pl.String, "unixReviewTime": pl.Int64}
# 2014 release: nested lists under "categories"; 2018 release: one list under "category".
_META = {"asin": pl.String, "category": pl.List(pl.String), "categories": pl.List(pl.List(pl.String))}
_LAST = {
    "category": pl.col("category").list.last(),
    "categories": pl.col("categories").list.last().list.last(),
}


def read_reviews(path: Path, rejected: list[Rejected], notes: list[Note]) -> pl.DataFrame:
    """``user`` and ``item`` (String) of every review, ordered by time; reviews of one second keep the file's order.

    Reads JSON lines with ``reviewerID``, ``asin`` and ``unixReviewTime``. Other lines go to ``rejected``. A review of
    the same user, item and second as one before is left out, and counted in ``notes``.

    Raises:
        UserError: unreadable file.
    """
    chunks = read_chunks(path, size=CHUNK_BYTES)
    parts = [_parse(c, c.text, _REVIEW, list(_REVIEW), _review, rejected) for c in chunks]
    rows = pl.concat(parts) if parts else pl.DataFrame(schema=_REVIEW)
    rows = _without_duplicates(rows, list(_REVIEW), "reviews", notes).sort("unixReviewTime", maintain_order=True)
    return rows.select(user="reviewerID", item="asin")


def read_sequences(path: Path, rejected: list[Rejected], notes: list[Note]) -> pl.DataFrame:
    """``user`` and ``item`` (String) of a file of ``user item item ...`` lines in time order.

    A line that stands there twice is read once, and counted in ``notes``.
    """
    parts = []
    for chunk in read_chunks(path, size=CHUNK_BYTES):
        try:
            lines = chunk.text.decode("utf-8").split("\n")
        except UnicodeDecodeError:
            raise UserError(f"{path}: not a text file of `user item item ...` lines") from None
        frame = pl.DataFrame({"text": lines}).with_row_index("line", offset=chunk.first_line)
        frame = frame.with_columns(token=pl.col("text").str.extract_all(r"\S+")).filter(pl.col("token").list.len() > 0)
        short = frame.filter(pl.col("token").list.len() == 1)
        rejected += [Rejected(path.name, n, "no items after the user", t) for n, t, _ in short.iter_rows()]
        parts.append(frame.filter(pl.col("token").list.len() > 1).select(line=pl.col("token").list.join(" ")))
    rows = pl.concat(parts) if parts else pl.DataFrame(schema={"line": pl.String})
    token = _without_duplicates(rows, ["line"], "lines", notes)["line"].str.split(" ")
    return pl.DataFrame({"user": token.list.first(), "item": token.list.slice(1)}).explode("item")


def read_metadata(path: Path, items: pl.Series, rejected: list[Rejected]) -> pl.DataFrame:
    """``item`` and ``category`` (String) of those of ``items`` that have one: the last, most specific category.

    Reads strict JSON lines (2018 release) or one Python literal a line (2014 release).
    """
    parts = []
    for chunk in read_chunks(path, size=CHUNK_BYTES):
        data = chunk.text if _is_json(chunk.text) else _lines_about(items, chunk.text)
        rows = _parse(chunk, data, _META, ["asin"], _item, rejected)
        parts.append(rows.select(item="asin", category=pl.coalesce(_LAST["category"], _LAST["categories"])))
    if not parts:
        raise UserError(f"{path}: the file is empty")
    return pl.concat(parts).drop_nulls("category").unique("item", keep="first", maintain_order=True)


def read_attributes(path: Path) -> pl.DataFrame:
    """``item`` and ``category`` (String) of a JSON map item -> list of attributes: the last one, the most specific."""
    try:
        mapping = json.loads(b"".join(c.text for c in read_chunks(path)))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(mapping, dict) or not all(isinstance(v, list) for v in mapping.values()):
        raise UserError(f"{path}: expected a JSON map from item to a list of attributes")
    last = [str(v[-1]) if v else None for v in mapping.values()]
    frame = pl.DataFrame({"item": list(mapping), "category": last}, schema={"item": pl.String, "category": pl.String})
    return frame.drop_nulls("category")


def _without_duplicates(rows: pl.DataFrame, key: list[str], what: str, notes: list[Note]) -> pl.DataFrame:
    first = rows.unique(key, keep="first", maintain_order=True)
    if len(first) < len(rows):
        dropped = len(rows) - len(first)
        notes.append(Note(dropped, len(rows), f"{what} are exact duplicates of earlier ones and were left out"))
    return first


def _parse(
    chunk: Chunk,
    data: bytes,
    schema: Mapping[str, Any],
    required: list[str],
    convert: Callable[[dict[str, Any]], dict[str, Any]],
    rejected: list[Rejected],
) -> pl.DataFrame:
    """The objects of JSON lines, columns of ``schema``; all at once when every line is good, else line by line.

    ``data`` is the text of ``chunk``, perhaps with some lines emptied.
    """
    if _is_json(data):
        try:
            rows = pl.read_ndjson(io.BytesIO(data), schema=schema)
            if not any(rows[c].null_count() for c in required):
                return rows
        except pl.exceptions.PolarsError:
            pass  # the slow way below finds the line
    good = []
    for number, line in enumerate(data.split(b"\n"), chunk.first_line):
        text = line.decode("utf-8", errors="replace").strip()
        if not text:
            continue
        try:
            good.append(convert(_object(text)))
        except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
            rejected.append(Rejected(chunk.file.name, number, reason.splitlines()[0], text[:200]))
    return pl.DataFrame(good, schema=schema)


def _is_json(data: bytes) -> bool:
    """Whether the first line is JSON."""
    try:
        json.loads(data.lstrip().split(b"\n", 1)[0])
    except ValueError:
        return False
    return True


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = ast.literal_eval(text)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _review(value: dict[str, Any]) -> dict[str, Any]:
    user, item, time = value["reviewerID"], value["asin"], value["unixReviewTime"]
    if not isinstance(user, str) or not isinstance(item, str) or not isinstance(time, int):
        raise ValueError("reviewerID, asin or unixReviewTime is of a wrong type")
    return {"reviewerID": user, "asin": item, "unixReviewTime": time}


def _item(value: dict[str, Any]) -> dict[str, Any]:
    flat, nested = value.get("category"), value.get("categories")
    lists = [flat or [], *(nested or [])]
    if not isinstance(value["asin"], str) or not all(isinstance(c, list) for c in lists):
        raise ValueError("asin, category or categories is of a wrong type")
    if not all(isinstance(name, str) for c in lists for name in c):
        raise ValueError("a category is no string")
    return {"asin": value["asin"], "category": flat, "categories": nested}


def _lines_about(items: pl.Series, data: bytes) -> bytes:
    """``data`` with the lines of other items emptied: parsing Python literals is slow and most items have no review.

    A line that does not name exactly one item is kept, so that the parser judges it.
    """
    lines = pl.DataFrame({"text": data.decode("utf-8", errors="replace").split("\n")})
    asin = pl.col("text").str.extract_all(r"'asin': '[^']*'")
    other = (asin.list.len() == 1) & ~asin.list.first().str.slice(9).str.head(-1).is_in(items.implode())
    lines = lines.with_columns(text=pl.when(other).then(pl.lit("")).otherwise("text"))
    return "\n".join(lines["text"].to_list()).encode()
