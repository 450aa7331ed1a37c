"""Vocabularies: counted block by block while the values of a block go to a file, ordered once at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from recsys_emb.data.hashes import hash63
from recsys_emb.data.schema import OOV_ID
from recsys_emb.errors import UserError
from recsys_emb.files import one_line


class ValueSpool:
    """Temporary files of the distinct values of each block of a field, with their counts in the training split.

    Blocks of integers, of texts and of nothing but nulls, which have no type, may take turns: there is a file for each.
    What they cost is disk: memory holds one block.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self._folder = folder
        self._writers: dict[pa.DataType, pa.ipc.RecordBatchFileWriter] = {}
        self._order: list[pa.DataType] = []

    def append(self, values: pa.Array, counts: np.ndarray) -> None:
        """``values``, int64 or large_string, without repetition; ``counts`` int64 of the same length."""
        if values.null_count == len(values):
            values = pa.nulls(len(values))
        batch = pa.record_batch([values, pa.array(counts)], names=["value", "count"])
        if values.type not in self._writers:
            self._writers[values.type] = pa.ipc.new_file(str(self._path(values.type)), batch.schema)
        self._writers[values.type].write_batch(batch)
        self._order.append(values.type)

    @property
    def integers(self) -> bool:
        """Whether the values are integers; texts otherwise, some of which may be the digits of integers."""
        return pa.int64() in self._writers and pa.large_string() not in self._writers

    def batches(self) -> Iterator[tuple[pa.Array, np.ndarray]]:
        """Values, all of one type, and counts: what was appended, in order, mapped from the files."""
        kind = pa.int64() if self.integers else pa.large_string()
        with ExitStack() as stack:
            readers = {}
            for stored, writer in self._writers.items():
                writer.close()
                mapped = stack.enter_context(pa.memory_map(str(self._path(stored))))
                readers[stored] = stack.enter_context(pa.ipc.open_file(mapped))
            done = dict.fromkeys(readers, 0)
            for stored in self._order:
                batch = readers[stored].get_batch(done[stored])
                done[stored] += 1
                yield batch.column("value").cast(kind), batch.column("count").to_numpy()

    def _path(self, stored: pa.DataType) -> Path:
        return self._folder / f"{self.name}.{stored}.values"


class Vocabulary:
    """Ids 1, 2, ... in order of falling training count, ties by value (null first); id 0 is every other value.

    Args:
        spool: the values of all blocks.
        folder: where the ids of each block's values are kept until they are read.
        min_count: least training count of a value that gets an id.

    Attributes:
        values: the raw value of id i + 1 at position i, int64 or large_string
        counts: int64 [ids], training occurrences by id; at 0 those of values below ``min_count``
    """

    def __init__(self, spool: ValueSpool, folder: Path, min_count: int) -> None:
        batches = list(spool.batches())
        distinct, codes = encode_all([values for values, _ in batches])
        totals = np.zeros(len(distinct), dtype=np.int64)
        for (_, counts), code in zip(batches, codes):
            totals[code] += counts  # no code occurs twice in a block
        ranked = ranked_values(distinct, totals, min_count)
        self.values: pa.Array = ranked["value"].to_arrow()
        self.counts = np.concatenate([[totals.sum() - ranked["count"].sum()], ranked["count"].to_numpy()])
        ids = np.full(len(distinct), OOV_ID, dtype=np.int32)
        ids[ranked["code"].to_numpy()] = np.arange(1, len(ranked) + 1, dtype=np.int32)
        self._path = folder / f"{spool.name}.ids"
        with open(self._path, "wb") as file:
            for code in codes:
                np.save(file, ids[code])

    def __len__(self) -> int:
        """Number of ids, id 0 included."""
        return len(self.counts)

    def block_ids(self) -> Iterator[np.ndarray]:
        """int32 ids of the values of each block, in the order of the spool."""
        with open(self._path, "rb") as file:
            yield from _arrays(file)


def hashed_block_ids(spool: ValueSpool) -> Iterator[np.ndarray]:
    """int64 hashes of the values of each block: what ``Vocabulary.block_ids`` is for hash64 ids."""
    for values, _ in spool.batches():
        yield hash63(values)


def ranked_values(distinct: pa.Array, totals: np.ndarray, min_count: int) -> pl.DataFrame:
    """The values that get ids, in the order of these: by falling count, ties by value (null first).

    Args:
        distinct: the values.
        totals: int64, how often each occurs.
        min_count: least count of a value that gets an id.

    Returns:
        columns ``code``, the position among ``distinct``, ``value`` and ``count``.
    """
    return (
        pl.DataFrame({"value": pl.from_arrow(distinct), "count": totals})
        .with_row_index("code")
        .filter(pl.col("count") >= max(min_count, 1))
        .sort("count", "value", descending=[True, False], nulls_last=False)
    )


def encode_all(blocks: list[pa.Array]) -> tuple[pa.Array, list[np.ndarray]]:
    """The distinct values of all blocks, and for each block the positions of its values among them, int32."""
    chunks = [b for b in blocks if len(b)]
    if not chunks:
        return pa.array([], pa.int64()), [np.zeros(0, np.int32) for _ in blocks]
    encoded = pa.chunked_array(chunks).dictionary_encode(null_encoding="encode").chunks
    indices = np.concatenate([chunk.indices.to_numpy() for chunk in encoded])
    # Every chunk carries the dictionary of the whole.
    return encoded[0].dictionary, np.split(indices, np.cumsum([len(b) for b in blocks])[:-1])


def _arrays(file: BinaryIO) -> Iterator[np.ndarray]:
    end = file.seek(0, 2)
    file.seek(0)
    while file.tell() < end:
        yield np.load(file, allow_pickle=False)


def write_vocabulary(path: Path, values: pa.Array) -> int:
    """Writes the raw values as an Arrow file, integers in the narrowest type; returns its bytes."""
    if pa.types.is_integer(values.type):
        series = pl.Series(values)
        unsigned = series.cast(pl.UInt32, strict=False)
        values = (unsigned if unsigned.null_count() == series.null_count() else series).shrink_dtype().to_arrow()
    with pa.ipc.new_file(str(path), pa.schema([("value", values.type)])) as writer:
        writer.write_batch(pa.record_batch([values], names=["value"]))
    return path.stat().st_size


class Counted(Protocol):
    """Values and how often they came, by id: ``values`` of ids from 1 on, ``counts`` int64 of ids from 0 on."""

    values: pa.Array
    counts: np.ndarray


def write_vocabularies(folder: Path, vocabularies: Mapping[str, Counted]) -> int:
    """Writes ``vocabularies/`` and ``counts/`` below a folder; returns the bytes of the first."""
    for sub in ("vocabularies", "counts"):
        (folder / sub).mkdir()
    for name, vocabulary in vocabularies.items():
        np.save(folder / "counts" / f"{name}.npy", vocabulary.counts)
    return sum(write_vocabulary(folder / "vocabularies" / f"{n}.arrow", v.values) for n, v in vocabularies.items())


def read_values(path: Path, size: int) -> pl.Series:
    """The raw values of a file of ``write_vocabulary``: that of id i + 1 at position i.

    Args:
        path: the file.
        size: ids that there are, id 0 included.

    Raises:
        UserError: the file is missing or damaged, or has other than ``size - 1`` values.
    """
    try:
        values = _read_values(path)
    except _DAMAGES as error:
        raise UserError(f"{path}: damaged vocabulary ({one_line(error)})") from None
    if len(values) != size - 1:
        raise UserError(f"{path}: {len(values)} values, the schema says {size - 1}")
    return values


_DAMAGES = (pa.ArrowException, pl.exceptions.PolarsError, OSError, KeyError, ValueError, MemoryError)


def _read_values(path: Path) -> pl.Series:
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as reader:
        column = reader.read_all().column("value")
        if not (pa.types.is_integer(column.type) or pa.types.is_large_string(column.type)):
            raise pa.ArrowTypeError(f"values of type {column.type}")
        column.validate(full=True)  # on lengths or text that cannot be, polars panics
        return pl.Series(column)


class Index(Protocol):
    """From raw values to ids."""

    @property
    def integers(self) -> bool | None:
        """Whether the values are integers, texts otherwise; None where that is not known."""

    @property
    def tells_unknown(self) -> bool:
        """Whether id 0 means that training has not seen a value."""

    def ids(self, values: pa.Array) -> np.ndarray:
        """Ids [n] of canonical values."""

    def id_of(self, value: int) -> int:
        """What ``ids`` gives an integer of 64 bits, in less time."""


class ValueIndex:
    """From raw values to ids, for rows that come after preparation.

    Args:
        path: a file of ``write_vocabulary``, or None where ids are hashes.
        size: ids that there are, id 0 included.
        integers: whether the values are integers, texts otherwise; None where that is not known. A file knows.

    Attributes:
        integers: as above.

    Raises:
        UserError: the file is missing or damaged, or has other than ``size - 1`` values.
    """

    def __init__(self, path: Path | None, size: int, integers: bool | None = None) -> None:
        self._hashed = path is None
        self.integers = integers
        if path is None:
            return
        values = read_values(path, size)
        try:
            self._index(values)
        except _DAMAGES as error:
            raise UserError(f"{path}: damaged vocabulary ({one_line(error)})") from None

    def _index(self, values: pl.Series) -> None:
        self.integers = values.dtype.is_integer()
        nulls = values.is_null().arg_true()
        self._null_id = int(nulls[0]) + 1 if len(nulls) else OOV_ID
        known = pl.DataFrame({"value": values}).with_row_index("id", offset=1).drop_nulls()
        if self.integers:
            known = known.sort("value")
            self._sorted = known["value"].cast(pl.Int64).to_numpy()
            if not (self._sorted[1:] > self._sorted[:-1]).all():
                raise ValueError("a value occurs twice")
        else:
            self._enum = pl.Enum(known["value"])
        self._known_ids = np.concatenate([known["id"].to_numpy().astype(np.int32), np.zeros(1, np.int32)])

    @property
    def tells_unknown(self) -> bool:
        return not self._hashed

    def ids(self, values: pa.Array) -> np.ndarray:
        """Ids [n] of canonical values, int32 or int64 of hashes; 0 for values that are not in the vocabulary.

        Values are integers or texts, whichever the vocabulary has: 3 and "3" are one value.
        """
        missing = values.null_count == len(values)  # of either type
        if missing or self.integers is None or self.integers == pa.types.is_integer(values.type):
            return self._ids_of(values)
        if not self.integers:
            return self._ids_of(values.cast(pa.large_string()))
        numbers = read_integers(values)
        ids = self._ids_of(numbers)
        others = pc.and_(numbers.is_null(), values.is_valid()).to_numpy(zero_copy_only=False)
        ids[others] = hash63(values)[others] if self._hashed else OOV_ID
        return ids

    def id_of(self, value: int) -> int:
        """What ``ids`` gives an integer of 64 bits, in less time."""
        if self._hashed or not self.integers:
            return int(self.ids(pa.array([value], pa.int64()))[0])
        at = int(self._sorted.searchsorted(value))
        return int(self._known_ids[at]) if at < len(self._sorted) and self._sorted[at] == value else OOV_ID

    def _ids_of(self, values: pa.Array) -> np.ndarray:
        """A vocabulary of integers where ``integers`` holds, else of texts."""
        if self._hashed:
            return hash63(values)
        if values.null_count == len(values):
            return np.full(len(values), self._null_id, dtype=np.int32)
        ids = self._known_ids[self._find_integers(values) if self.integers else self._find_strings(pl.Series(values))]
        if values.null_count:
            ids[values.is_null().to_numpy(zero_copy_only=False)] = self._null_id
        return ids

    def _find_integers(self, values: pa.Array) -> np.ndarray:
        """Positions in ``_sorted``; -1, the zero at the end of ``_known_ids``, for values that are not there.

        Without polars, whose threads take longer to start than the few values of a request take to find.
        """
        wanted = np.frombuffer(values.buffers()[1], np.int64, len(values), 8 * values.offset)  # anything where null
        if not len(self._sorted):
            return np.full(len(wanted), -1)
        at = self._sorted.searchsorted(wanted)
        at[at == len(self._sorted)] = -1
        at[self._sorted[at] != wanted] = -1
        return at

    def _find_strings(self, series: pl.Series) -> np.ndarray:
        codes = series.cast(self._enum, strict=False).to_physical()
        return codes.cast(pl.Int64).fill_null(-1).to_numpy()


def read_integers(texts: pa.Array) -> pa.Array:
    """int64 [n]; null where a text is not how an integer is written."""
    series = pl.Series(texts, dtype=pl.String)
    digits = series.str.contains(r"^(?:0|-?[1-9][0-9]*)$")
    return series.set(~digits, None).cast(pl.Int64, strict=False).to_arrow()
