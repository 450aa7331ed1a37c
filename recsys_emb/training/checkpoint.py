"""Checkpoints: safetensors for tensors, JSON for the rest, written beside and renamed.

checkpoints/STAGE/
  step-00000144/          model.safetensors  optimizer.safetensors  state.json
  best.json               {"folder": "step-00000144"}
  initial/                model.safetensors, where a later stage starts from these weights again
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_emb.errors import UserError
from recsys_emb.files import fsync, read_json, write_json

PIECE_BYTES = 1 << 26
"""Tensors above this size are read piece by piece."""


class Checkpoints:
    """The checkpoints of one stage: the last one and the best one are kept."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def save(
        self, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: dict[str, Any], best: bool
    ) -> None:
        """Writes one checkpoint, then drops those that are neither the last nor the best."""
        target = self.path / f"step-{step:08d}"
        beside = self.path / "writing.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.items()}, beside / "model.safetensors")
        save_file({k: v.contiguous() for k, v in optimizer.items()}, beside / "optimizer.safetensors")
        for file in beside.iterdir():
            fsync(file)
        write_json(beside / "state.json", state)
        if target.exists():  # a run that was resumed behind it
            shutil.rmtree(target)
        beside.rename(target)
        fsync(self.path)
        if best:
            self.mark_best(target)
        keep = {target, self.best()}
        for old in self._folders():
            if old not in keep:
                shutil.rmtree(old)

    def mark_best(self, folder: Path) -> None:
        """Says that a checkpoint is the best one."""
        write_json(self.path / "best.json", {"folder": folder.name})

    def save_initial(self, model: Mapping[str, Tensor]) -> None:
        """Writes the weights that the stage starts with; those that are there already are kept."""
        if self.initial.exists():
            return
        beside = self.path / "writing.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in model.items()}, beside / "model.safetensors")
        fsync(beside / "model.safetensors")
        beside.rename(self.initial)
        fsync(self.path)

    @property
    def initial(self) -> Path:
        return self.path / "initial"

    def _folders(self) -> list[Path]:
        return sorted(p for p in self.path.glob("step-*") if (p / "state.json").is_file())

    def last(self) -> Path | None:
        """The newest checkpoint."""
        folders = self._folders()
        return folders[-1] if folders else None

    def best(self) -> Path | None:
        """The checkpoint of the best evaluation so far."""
        pointer = self.path / "best.json"
        if not pointer.is_file():
            return None
        folder = self.path / read_json(pointer)["folder"]
        return folder if folder.is_dir() else None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError when it is damaged or missing."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def load_model(model: torch.nn.Module, folder: Path) -> None:
    """Loads a checkpoint's weights. Raises UserError when they are of another model.

    A table is read in pieces: the pages of a mapped file count as resident memory, and a whole one would double it.
    """
    file = folder / "model.safetensors"
    own = dict(chain(model.named_parameters(), model.named_buffers()))  # a state_dict would collect sharded tables
    tensors = load_tensors(file)
    for name, target in own.items():
        stored = tensors.get(name)
        if target.nbytes > PIECE_BYTES and stored is not None and stored.shape == target.shape:
            _read_in_pieces(file, name, target)
            tensors[name] = target  # which loading leaves as it is
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder}: does not fit the run's config ({reason})") from None


@torch.no_grad()
def _read_in_pieces(file: Path, name: str, target: Tensor) -> None:
    """Fills ``target`` [rows, ...]; the file is mapped anew for every piece, so that no more than one is resident."""
    rows = max(1, PIECE_BYTES * len(target) // target.nbytes)
    for start in range(0, len(target), rows):
        piece = slice(start, min(start + rows, len(target)))
        with safe_open(file, "pt") as stored:
            target[piece].copy_(stored.get_slice(name)[piece])
