"""The Criteo display advertising challenge: label, 13 integers, 26 hexadecimal strings, tab-separated, no header."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import Field

from recsys_emb.data.schema import CategoricalField
from recsys_emb.data.sources._delimited import Format, Rows, parse, quoting
from recsys_emb.data.sources._fields import Ratios
from recsys_emb.data.sources._files import Chunk, count_lines, find_files, read_chunks, read_header
from recsys_emb.data.sources._splits import OrderSplit, RandomSplit
from recsys_emb.data.sources.base import Block, DenseColumn, RawFields, Rejected, Source, SourceOptions, register
from recsys_emb.native import criteo as native

INTEGERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
_FIELDS = INTEGERS + CATEGORIES
_COLUMNS = {"label": pl.Int64, **dict.fromkeys(INTEGERS, pl.Int64), **dict.fromkeys(CATEGORIES, pl.String)}
_FORMAT = Format(columns=_COLUMNS, separator="\t")
_WITHOUT_LABEL = Format({name: kind for name, kind in _COLUMNS.items() if name != "label"}, separator="\t")
_ANY_LABEL = Format({**_COLUMNS, "label": pl.String}, separator="\t")
_HEX = r"^[0-9a-fA-F]{1,8}$"


class CriteoOptions(SourceOptions):
    """Options of ``criteo``."""

    dense: Literal["log1p", "winner"] = Field(
        "log1p",
        description="log1p: standardised sign(x) log(1 + |x|); winner: the integers as categorical fields, "
        "floor(ln(x)^2) for x > 2 and x itself otherwise, as the winners of the 2014 challenge did",
    )
    split: Literal["random", "time"] = Field("random", description="random by seed, or by time, which is file order")
    ratios: Ratios = Field((0.8, 0.1, 0.1), description="relative sizes of train, valid and test")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of the random split")


@register("criteo")
class Criteo(Source):
    """``train.txt`` as published, plain or gzip; a folder or a glob of such files is read in order of their names.

    A hexadecimal string is kept as the integer it spells.
    """

    summary = "Criteo display advertising challenge: train.txt (TSV), plain or gzip, one file or many"
    Options = CriteoOptions
    options: CriteoOptions

    def files(self) -> list[Path]:
        return find_files(self.path)

    def fields(self) -> RawFields:
        winner = self.options.dense == "winner"
        dense = () if winner else tuple(DenseColumn(name, "log1p") for name in INTEGERS)
        names = (*(INTEGERS if winner else ()), *CATEGORIES)
        return RawFields(dense=dense, categorical=tuple(CategoricalField(name=n, vocabulary=n) for n in names))

    def blocks(self) -> Iterator[Block]:
        split = self._split()
        for file in self.files():
            read_header(file)  # refuses an empty file
            for chunk in read_chunks(file):
                frame, labels, rejected = _labelled(chunk)
                yield Block(self._fields(frame), labels, split.codes(len(frame)), rejected=rejected)

    def inputs(self) -> Iterator[Block]:
        """The fields of ``train.txt``, or of ``test.txt``, which has no labels."""
        for file in self.files():
            labelled = read_header(file).count("\t") >= len(INTEGERS) + len(CATEGORIES)
            for chunk in read_chunks(file):
                frame, lines, rejected = _unlabelled(chunk, labelled)
                zeros = np.zeros(len(frame), np.uint8)
                yield Block(self._fields(frame), zeros, zeros, rejected=rejected, lines=lines)

    def _fields(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self.options.dense == "winner":
            return frame.with_columns(_winner(frame[name]) for name in INTEGERS)
        return frame

    def _split(self) -> RandomSplit | OrderSplit:
        if self.options.split == "random":
            return RandomSplit(self.options.ratios, self.options.seed)
        return OrderSplit(sum(count_lines(f) for f in self.files()), self.options.ratios)


def _labelled(chunk: Chunk) -> tuple[pl.DataFrame, np.ndarray, list[Rejected]]:
    """The values of the good rows, their labels and the other rows."""
    fast = native.parse(chunk.text, chunk.lines, _FIELDS, labelled=True)
    if fast is not None:
        return *fast, []
    rows = parse(chunk, _FORMAT)
    label = rows.frame["label"]
    rows = rows.reject(~label.is_in([0, 1]).fill_null(False), quoting(label, "label is not 0 or 1"))
    rows, frame = _categories(rows, chunk)
    return frame.select(_FIELDS), frame["label"].cast(pl.UInt8).to_numpy(), rows.rejected


def _unlabelled(chunk: Chunk, labelled: bool) -> tuple[pl.DataFrame, np.ndarray, list[Rejected]]:
    """The values of the good rows, the lines they stand at and the other rows; a label may be anything."""
    fast = native.parse(chunk.text, chunk.lines, _FIELDS, labelled)
    if fast is not None:
        return fast[0], chunk.first_line + np.arange(chunk.lines), []
    rows, frame = _categories(parse(chunk, _ANY_LABEL if labelled else _WITHOUT_LABEL), chunk)
    return frame.select(_FIELDS), rows.lines, rows.rejected


def _categories(rows: Rows, chunk: Chunk) -> tuple[Rows, pl.DataFrame]:
    """The good rows of the chunk with their categories as integers; one that is no hexadecimal number of up to 8
    digits is rejected.
    """
    frame = rows.frame.with_columns(pl.col(c).str.to_integer(base=16, strict=False) for c in CATEGORIES)
    eight = rows.frame.select((pl.col(c).str.len_bytes() == 8).all() for c in CATEGORIES)
    # to_integer takes a sign.
    unsigned = b"+" not in chunk.text and all(frame.select((pl.col(c) >= 0).all() for c in CATEGORIES).row(0))
    same = frame.select(CATEGORIES).null_count().equals(rows.frame.select(CATEGORIES).null_count())
    if same and all(eight.row(0)) and unsigned:
        return rows, frame
    for name in CATEGORIES:
        value = rows.frame[name]
        rows = rows.reject(~value.str.contains(_HEX).fill_null(True), quoting(value, f"{name} is not hexadecimal"))
    # Strings of fewer digits stay apart from the longer ones with zeros in front.
    short = {c: (8 - pl.col(c).str.len_bytes().cast(pl.Int64)) * 2**32 for c in CATEGORIES}
    return rows, rows.frame.with_columns(pl.col(c).str.to_integer(base=16) + short[c] for c in CATEGORIES)


def _winner(values: pl.Series) -> pl.Series:
    """Int64: floor(ln(x)^2) for x > 2, x itself otherwise, null for missing ("3 Idiots", FFM solution of 2014)."""
    numbers = values.fill_null(0).to_numpy()
    squared = np.floor(np.log(np.maximum(numbers, 1)) ** 2).astype(np.int64)
    discrete = pl.Series(values.name, np.where(numbers > 2, squared, numbers))
    return discrete.set(values.is_null(), None)
