"""Writes the arrays of one split of a prepared dataset, block by block."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recsys_emb.data.schema import OOV_ID, DatasetSchema
from recsys_emb.data.store import NpyWriter


class SplitWriter:
    """The files of ``DIR/SPLIT`` (store.py); counts the out-of-vocabulary values on the way."""

    def __init__(self, folder: Path, schema: DatasetSchema) -> None:
        folder.mkdir()
        id_type = np.int64 if schema.ids == "hash64" else np.int32
        self._labels = NpyWriter(folder / "labels.npy", np.uint8)
        self._weights = NpyWriter(folder / "weights.npy", np.float32) if schema.weighted else None
        self._dense = NpyWriter(folder / "dense.npy", np.float32, len(schema.dense))
        self._ids = NpyWriter(folder / "ids.npy", id_type, len(schema.single_valued))
        self._single = [f.name for f in schema.single_valued]
        names = [f.name for f in schema.jagged]
        self._values = {n: NpyWriter(folder / f"{n}.values.npy", id_type) for n in names}
        self._offsets = {n: NpyWriter(folder / f"{n}.offsets.npy", np.int64) for n in names}
        for offsets in self._offsets.values():
            offsets.append(np.zeros(1, np.int64))
        self._oov = dict.fromkeys([*self._single, *names], 0)

    def append(
        self,
        mine: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        dense: np.ndarray,
        ids: np.ndarray,
        jagged: dict[str, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        """The rows of a block where ``mine`` (bool [n]) holds.

        Args:
            labels, weights, dense, ids: [n], [n], [n, Nd], [n, F]; ``weights`` is not read when there are none.
            jagged: per multi-valued and sequence field its values [m], row after row, and lengths int64 [n].
        """
        rows = np.flatnonzero(mine)
        self._labels.append(labels[rows])
        if self._weights is not None:
            self._weights.append(weights[rows])
        self._dense.append(dense.take(rows, axis=0))
        own = ids.take(rows, axis=0)
        self._ids.append(own)
        for name, missing in zip(self._single, len(own) - np.count_nonzero(own != OOV_ID, axis=0)):
            self._oov[name] += int(missing)
        for name, (values, lengths) in jagged.items():
            kept = values[np.repeat(mine, lengths)]
            start = self._values[name].rows
            self._values[name].append(kept)
            self._offsets[name].append(start + np.cumsum(lengths[rows]))
            self._oov[name] += len(kept) - int(np.count_nonzero(kept))

    def close(self) -> dict[str, float]:
        """Completes the files. Returns per field the share of its values that have id 0."""
        totals = {**dict.fromkeys(self._single, self._ids.rows), **{n: w.rows for n, w in self._values.items()}}
        weights = [] if self._weights is None else [self._weights]
        for writer in (self._labels, *weights, self._dense, self._ids, *self._values.values(), *self._offsets.values()):
            writer.close()
        return {name: missing / max(totals[name], 1) for name, missing in self._oov.items()}
