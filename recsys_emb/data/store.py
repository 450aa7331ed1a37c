"""The prepared dataset: a folder of memory-mapped arrays that are read back without parsing.

DIR/
  dataset.json              what made it: source, options, row counts, checksums
  schema.json               fields and vocabulary sizes (schema.py)
  vocabularies/NAME.arrow   the raw value of id i + 1 at row i (absent for hash64 ids)
  counts/NAME.npy           int64 [ids]: how often each id of a vocabulary occurs in the training split
  rejected.tsv              malformed rows: file, line, reason, text
  train/ valid/ test/
    labels.npy              uint8 [n]
    weights.npy             float32 [n], when the schema is weighted
    dense.npy               float32 [n, Nd]
    ids.npy                 int32 [n, F] of the single-valued fields (int64 when ids are hashes)
    FIELD.values.npy        int32 [m] of a multi-valued or sequence field, row after row
    FIELD.offsets.npy       int64 [n + 1]: where each row's values start
  parts/NAME/               rows appended later, and the state that they make (parts.py)
"""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel

from recsys_emb.data.encoding import Encoding
from recsys_emb.data.parts import BASE, state_folder, state_names
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.split import Jagged, Split
from recsys_emb.errors import UserError
from recsys_emb.files import one_line, read_json, read_json_as

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_VERSION = 2
"""2: texts of one value, such as 3 and 3.0, are one id (values.py)."""
_DAMAGES = (ValueError, TypeError, OverflowError, SyntaxError, TokenError, EOFError, MemoryError, RecursionError)
"""What numpy raises on a file that is no array."""

SPLITS = ("train", "valid", "test")


class NpyWriter:
    """Appends blocks of rows to a ``.npy`` file whose length is not known beforehand.

    Args:
        path: the file.
        dtype: dtype of the array.
        columns: row width for a 2-d array; None for a 1-d array.
    """

    _HEADER = 128

    def __init__(self, path: Path, dtype: np.typing.DTypeLike, columns: int | None = None) -> None:
        self._dtype = np.dtype(dtype)
        self._columns = columns
        self._file = open(path, "wb")  # noqa: SIM115  closed by close()
        self._file.write(b"\0" * self._HEADER)
        self.rows = 0

    def append(self, block: np.ndarray) -> None:
        """Writes ``block`` [n] or [n, columns], cast to the file's dtype."""
        if block.shape[1:] != (() if self._columns is None else (self._columns,)):
            raise ValueError(f"{self._file.name}: block of shape {block.shape}, expected columns {self._columns}")
        np.ascontiguousarray(block, dtype=self._dtype).tofile(self._file)
        self.rows += len(block)

    def close(self) -> None:
        """Writes the header with the final shape."""
        shape = (self.rows,) if self._columns is None else (self.rows, self._columns)
        header = f"{{'descr': '{self._dtype.str}', 'fortran_order': False, 'shape': {shape}, }}".encode()
        length = self._HEADER - 10
        self._file.seek(0)
        self._file.write(b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + header.ljust(length - 1) + b"\n")
        self._file.close()


class _Manifest(BaseModel):
    """What is read of ``dataset.json``, which may hold more."""

    source: str | None = None
    name: str | None = None
    options: dict[str, Any] = {}
    dense: list[dict[str, Any]] | None = None
    checksums: dict[str, str] = {}
    bayes: dict[str, dict[str, float]] = {}
    oov_rate: dict[str, dict[str, float]] = {}
    vocabulary_bytes: int | None = None


SplitBy = Literal["own", "parts"]


class EncodedDataset:
    """A state of a prepared folder, opened read-only.

    Args:
        path: the folder.
        state: ``base``, as it was prepared, or the name of a part: vocabularies, counts and training rows are those
            that there were when it had been appended. None: the latest that ``split_by`` allows.
        split_by: ``own``: appended rows are training rows, valid and test are those of ``base``. ``parts``: train on
            all rows up to ``state``, validate on the part after it, test on the one after that; ids that ``state`` does
            not know are out-of-vocabulary there.
        recent: train on the rows of the last so many parts only (``base`` is one, too); None: on all.

    Raises:
        UserError: the folder is not a prepared dataset, was prepared by another version, or has no such state.
    """

    def __init__(
        self,
        path: str | Path,
        state: str | None = None,
        split_by: SplitBy = "own",
        recent: int | None = None,
    ) -> None:
        self.path = Path(path)
        if not (self.path / "dataset.json").is_file():
            what = "is not a prepared dataset (no dataset.json)" if self.path.exists() else "does not exist"
            raise UserError(f"data.path {self.path} {what}; make one with `recsys-emb data prepare`")
        states = state_names(self.path)
        self.state = _state(self.path, states, state, split_by)
        self.folder = state_folder(self.path, self.state)
        end = states.index(self.state) + 1
        self._parts = {"train": states[max(end - recent, 0) if recent else 0 : end], "valid": [BASE], "test": [BASE]}
        if split_by == "parts":
            self._parts |= {"valid": [states[end]], "test": [states[end + 1]]}
        self._split_by = split_by
        self.manifest: dict[str, Any] = read_json(self.folder / "dataset.json")
        version = self.manifest.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(
                f"{self.path} was prepared as format {version}, this version reads {FORMAT_VERSION}; prepare it again"
            )
        read_json_as(self.folder / "dataset.json", _Manifest)
        self.schema = read_json_as(self.folder / "schema.json", DatasetSchema)

    @property
    def name(self) -> str:
        """What reports call the dataset: the name given at preparation, else the source."""
        return self.manifest.get("name") or self.manifest.get("source", self.path.name)

    @property
    def encoding(self) -> Encoding:
        """What gives raw rows their ids and scales."""
        return Encoding(self.schema, self.manifest.get("dense"), self.manifest.get("checksums", {}))

    @property
    def fingerprint(self) -> str:
        """That of ``encoding``."""
        return self.encoding.fingerprint

    @property
    def bayes(self) -> dict[str, dict[str, float]]:
        """Per split, ``auc`` and ``logloss`` of the true click probabilities; empty where they are unknown."""
        return self.manifest.get("bayes", {}) if self._as_prepared else {}

    @property
    def _as_prepared(self) -> bool:
        """Whether the splits are those that the folder was prepared with."""
        return self.state == BASE and self._split_by == "own"

    def unknown_share(self, split: str) -> dict[str, float] | None:
        """By field, the share of a split's values that have no id of their own; None where ids are hashes."""
        if self.schema.ids == "hash64":
            return None
        if self._as_prepared:
            return self.manifest.get("oov_rate", {}).get(split, {})
        from recsys_emb.data.chained import unknown_shares  # takes a second, for torch

        return unknown_shares(self.split(split), self.schema)

    def split(self, name: str) -> Split:
        """The arrays of ``train``, ``valid`` or ``test``."""
        if name not in SPLITS:
            raise UserError(f"unknown split {name!r}; allowed: {', '.join(SPLITS)}")
        if self._as_prepared:
            return _open_split(self.path, name, self.schema)
        whole = SPLITS if self._split_by == "parts" else (name,)
        pieces = [
            _open_split(state_folder(self.path, part), stored, self.schema)
            for part in self._parts[name]
            for stored in (whole if part == BASE else ("train",))
        ]
        from recsys_emb.data.chained import chain

        return chain(name, pieces, self.schema)

    def counts(self, vocabulary: str) -> np.ndarray:
        """int64 [ids]: occurrences of each id in the training split (memory-mapped)."""
        return _map(self.folder / "counts" / f"{vocabulary}.npy", np.int64, self.schema.vocabularies[vocabulary])

    def stats(self) -> dict[str, np.ndarray]:
        """``counts`` of every vocabulary by name; nothing where ids are hashes, which have no list."""
        return {} if self.schema.ids == "hash64" else {name: self.counts(name) for name in self.schema.vocabularies}


def open_dataset(
    path: str | Path, state: str | None = None, split_by: SplitBy = "own", recent: int | None = None
) -> EncodedDataset:
    """Opens a folder written by ``recsys-emb data prepare``; arguments as of ``EncodedDataset``."""
    return EncodedDataset(path, state, split_by, recent)


def _state(path: Path, states: list[str], state: str | None, split_by: SplitBy) -> str:
    """The state that is meant. Raises UserError when there is none."""
    if state is not None and state not in states:
        raise UserError(f"data.state {state}: {path} has no such state; it has {', '.join(states)}")
    if split_by == "own":
        return state or states[-1]
    if len(states) < 3 or (state is not None and states.index(state) > len(states) - 3):
        raise UserError(
            f"data.split parts: needs two parts of {path} after {state or BASE}, to validate and to test on; it has "
            f"{', '.join(states)}; append more (`recsys-emb data append`)"
        )
    return state or states[-3]


def _open_split(folder: Path, name: str, schema: DatasetSchema) -> Split:
    """The arrays of one split of one part."""
    id_type = np.int64 if schema.ids == "hash64" else np.int32
    folder = folder / name
    labels = _open(folder / "labels.npy", np.uint8, None)
    rows = len(labels)
    return Split(
        name=name,
        labels=labels,
        weights=_open(folder / "weights.npy", np.float32, rows) if schema.weighted else None,
        dense=_open(folder / "dense.npy", np.float32, rows, len(schema.dense)),
        ids=_open(folder / "ids.npy", id_type, rows, len(schema.single_valued)),
        jagged={
            f.name: Jagged(
                _open(folder / f"{f.name}.values.npy", id_type, None),
                _open(folder / f"{f.name}.offsets.npy", np.int64, rows + 1),
            )
            for f in schema.jagged
        },
    )


def _map(path: Path, dtype: np.typing.DTypeLike, *shape: int | None) -> np.ndarray:
    """An array of a type and shape (None: any length), or UserError."""
    try:
        # Copy-on-write: torch accepts only writable arrays without a warning; the file is never changed.
        array = np.lib.format.open_memmap(path, mode="c")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); prepare the dataset again") from None
    except _DAMAGES as error:
        if "empty" not in str(error):  # an array of no elements cannot be mapped
            raise UserError(f"{path}: damaged array ({one_line(error)}); prepare the dataset again") from None
        array = np.load(path, allow_pickle=False)
    fits = array.ndim == len(shape) and all(n is None or n == m for n, m in zip(shape, array.shape))
    if array.dtype != dtype or not fits or not array.flags.c_contiguous:
        wanted = f"{np.dtype(dtype)} [{', '.join('n' if n is None else str(n) for n in shape)}]"
        raise UserError(
            f"{path}: {array.dtype} {list(array.shape)}, the schema says {wanted}; prepare the dataset again"
        )
    return array


def _open(path: Path, dtype: np.typing.DTypeLike, *shape: int | None) -> Tensor:
    import torch  # takes a second, and who prepares or describes a dataset reads no split

    return torch.from_numpy(_map(path, dtype, *shape))
