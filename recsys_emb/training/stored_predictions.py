"""What a run predicted for its test split, kept in its folder: reports compare two runs row by row without a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from recsys_emb.errors import UserError
from recsys_emb.files import write_bytes


@dataclass(frozen=True)
class StoredPredictions:
    """N rows, in the order of the split.

    Attributes:
        logits: float32 [N].
        labels: uint8 [N], 0 or 1.
        weights: float32 [N], where rows have weights.
        known_user: bool [N], whether the row's user has an id, where rows have users.
    """

    logits: NDArray[np.float32]
    labels: NDArray[np.uint8]
    weights: NDArray[np.float32] | None = None
    known_user: NDArray[np.bool_] | None = None

    def save(self, path: Path) -> None:
        """Writes a safetensors file: 5 bytes a row, 4 more with weights, 1 more with users."""
        write_bytes(path, save({name: array for name, array in vars(self).items() if array is not None}))

    @classmethod
    def load(cls, path: Path) -> StoredPredictions | None:
        """What ``save`` wrote; None where there is no such file. UserError when it is damaged."""
        if not path.is_file():
            return None
        try:
            return cls(**load_file(path))
        except (SafetensorError, TypeError, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it, or train the run again") from None

    def same_rows(self, other: StoredPredictions) -> bool:
        """Whether both are predictions of the same rows in the same order, as far as labels and weights tell."""
        weights = self.weights is None and other.weights is None
        if self.weights is not None and other.weights is not None:
            weights = np.array_equal(self.weights, other.weights)
        return weights and np.array_equal(self.labels, other.labels)
