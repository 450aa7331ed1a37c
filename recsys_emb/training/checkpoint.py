"""Checkpoints: safetensors for tensors, JSON for the rest, written beside, put on the disk, then renamed.

checkpoints/STAGE/
  step-00000144/          model.safetensors  optimizer.safetensors  state.json
                          manifest.json: size and checksum of each, and the step of the best checkpoint so far
  initial/                the same of the model alone, where a later stage starts from these weights again

So a folder under its own name is whole; one that the disk damaged since is named in a warning and passed over.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_emb.data.folder import checksum
from recsys_emb.errors import UserError
from recsys_emb.files import fsync, read_json, write_json
from recsys_emb.validation import explain

FORMAT_VERSION: Final = 3
"""3: narrow rows are kept as they are; 2 divided them by a factor of their width."""
MODEL: Final = "model.safetensors"
OPTIMIZER: Final = "optimizer.safetensors"
STATE: Final = "state.json"
MANIFEST = "manifest.json"
PIECE_BYTES = 1 << 26
"""Tensors above this size are read piece by piece."""
_log = logging.getLogger(__name__)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _File(_Strict):
    bytes: int = Field(ge=0)
    blake2b: str


class _Manifest(_Strict):
    format_version: Literal[3]
    best: int | None = Field(ge=0)
    files: dict[Literal["model.safetensors", "optimizer.safetensors", "state.json"], _File]


class Checkpoints:
    """The checkpoints of one stage. The last ones are kept, each with the best one that it knows."""

    kept: ClassVar[int] = 2
    """So that there is one to go back to when the last is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # -- writing ------------------------------------------------------------------------------------------------------

    def save(
        self,
        step: int,
        model: Mapping[str, Tensor],
        optimizer: Mapping[str, Tensor],
        state: dict[str, Any],
        best: int | None,
    ) -> None:
        """Writes one checkpoint, then drops those that are not needed any more.

        Args:
            step: after which it is; one of this step that is there already is replaced.
            model, optimizer: tensors by name.
            state: what else a training needs to go on.
            best: step of the checkpoint with the best weights so far; None while nothing has been evaluated.

        Raises:
            OSError: it cannot be written; those before are as they were.
        """
        self._write(self.folder(step), {MODEL: model, OPTIMIZER: optimizer}, state, best)
        steps = self._steps()
        last = [s for s in steps if s <= step][-self.kept :]  # a step beyond is damaged: the run was resumed behind it
        known = {s: _manifest(self.folder(s)).best for s in last if (self.folder(s) / MANIFEST).is_file()}
        for old in set(steps) - set(last) - set(known.values()):
            shutil.rmtree(self.folder(old))

    def save_initial(self, model: Mapping[str, Tensor]) -> None:
        """Writes the weights that the stage starts with; those that are there already are kept."""
        if not self.initial.exists():
            self._write(self.initial, {MODEL: model}, None, None)

    def _write(
        self, target: Path, tensors: dict[str, Mapping[str, Tensor]], state: dict[str, Any] | None, best: int | None
    ) -> None:
        beside, aside = self.path / "writing.tmp", self.path / "replaced.tmp"
        for leftover in (beside, aside):
            shutil.rmtree(leftover, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            for name, named in tensors.items():
                save_tensors(named, beside / name)
                fsync(beside / name)
            if state is not None:
                write_json(beside / STATE, state)
            files = {f.name: {"bytes": f.stat().st_size, "blake2b": checksum(f)} for f in sorted(beside.iterdir())}
            write_json(beside / MANIFEST, {"format_version": FORMAT_VERSION, "best": best, "files": files})
            if target.exists():
                target.rename(aside)
            beside.rename(target)
            fsync(self.path)
        finally:
            for leftover in (beside, aside):
                shutil.rmtree(leftover, ignore_errors=True)

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def initial(self) -> Path:
        return self.path / "initial"

    def folder(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"

    def _steps(self) -> list[int]:
        names = (p.name.removeprefix("step-") for p in self.path.glob("step-*"))
        return sorted(int(name) for name in names if name.isdecimal() and name.isascii())

    def last(self) -> Path | None:
        """The newest checkpoint to go on from: undamaged, and so is the best one that it knows.

        Raises:
            UserError: another version wrote it.
        """
        for folder, best in self._newest_first():
            try:
                check(folder, MODEL, OPTIMIZER, STATE)
                if best is not None and best != folder:
                    check(best, MODEL)
            except UserError as error:
                _log.warning("%s; going on from an older checkpoint", error)
                continue
            return folder
        return None

    def best(self) -> Path | None:
        """The checkpoint of the best evaluation so far. Raises UserError when its weights are damaged."""
        best = next((best for _, best in self._newest_first()), None)
        if best is not None:
            check(best, MODEL)
        return best

    def _newest_first(self) -> Iterator[tuple[Path, Path | None]]:
        """Checkpoints, each with the best one that it knows."""
        for step in reversed(self._steps()):
            folder = self.folder(step)
            try:
                best = _manifest(folder).best
            except _OtherVersion:
                raise
            except UserError as error:
                _log.warning("%s; going on from an older checkpoint", error)
                continue
            yield folder, None if best is None else self.folder(best)


class _OtherVersion(UserError):
    """Not damage: an older checkpoint is as foreign, and to train from the beginning would throw all of them away."""


def _manifest(folder: Path) -> _Manifest:
    tree = read_json(folder / MANIFEST)
    version = tree.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise _OtherVersion(
            f"{folder}: a checkpoint of format {version}, this version reads {FORMAT_VERSION}; go on with the version "
            "that wrote it (env.json of the run), or begin a new run"
        )
    try:
        return _Manifest.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{folder / MANIFEST}: {explain(error, _Manifest)}") from None


def check(folder: Path, *names: Literal["model.safetensors", "optimizer.safetensors", "state.json"]) -> None:
    """Raises UserError when one of a checkpoint's files is not what was written."""
    files = _manifest(folder).files
    for name in names:
        path, facts = folder / name, files.get(name)
        if facts is None:
            raise UserError(f"{folder / MANIFEST}: lists no {name}")
        if not path.is_file():
            raise UserError(f"{path}: missing")
        if path.stat().st_size != facts.bytes or checksum(path) != facts.blake2b:
            raise UserError(f"{path}: damaged, its size or checksum is not that of {MANIFEST}")


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Writes a safetensors file. Raises OSError, as writing other files does."""
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise (OSError(int(code[1]), os.strerror(int(code[1])), str(path)) if code else error) from None


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
    file = folder / MODEL
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
