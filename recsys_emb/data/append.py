"""New rows onto a prepared folder, as a further part (parts.py); what was there stays as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recsys_emb.data.encode import encode
from recsys_emb.data.first_pass import FirstPass, ReportProgress
from recsys_emb.data.folder import building
from recsys_emb.data.growth import GrownIds
from recsys_emb.data.ids import BlockIds, ReferenceIds
from recsys_emb.data.like import reference_of
from recsys_emb.data.options import make_source
from recsys_emb.data.parts import BASE, PARTS, check_next, state_folder, state_names
from recsys_emb.data.sources.base import TRAIN, Block, Source
from recsys_emb.data.store import EncodedDataset, open_dataset
from recsys_emb.data.vocabulary import ValueSpool
from recsys_emb.errors import UserError
from recsys_emb.files import read_json
from recsys_emb.lock import sole_writer


def append(
    path: Path,
    input: Path | None,
    *,
    name: str | None = None,
    options: Sequence[str] = (),
    min_count: int | None = None,
    decay: float = 1.0,
    max_rejected: float = 0.01,
    progress: ReportProgress | None = None,
) -> dict[str, Any]:
    """Prepares new rows as the next part of the folder ``path``; killed at any point, the folder is as before.

    All rows are training rows, whatever the source's split options say; which parts are validated and tested on is the
    config's choice. Known values keep their ids, new ones get the next numbers, by falling count. Dense fields are
    scaled as before.

    Args:
        path: a prepared dataset.
        input: what to read, in the format of the first rows; None for sources that make their rows.
        name: of the part; names rise from part to part, numbers in them count as numbers. Absent: the input's, without
            its endings.
        options: ``key=value`` texts that replace options of the source.
        min_count: least count in the new rows of a new value that gets an id; absent: that of the preparation.
        decay: factor on the counts of before, 0 to 1.
        max_rejected: share of malformed rows from which on nothing is made.
        progress: told of the rows done.

    Returns:
        The part's manifest, as written to its ``dataset.json``.

    Raises:
        UserError: no prepared dataset, a name that is taken or comes before the last part's, rows that were appended
            already, have one class of labels, or are not in the format of the first, or another process appends.
    """
    if not 0 <= decay <= 1:
        raise UserError(f"--decay {decay:g}: must be between 0 and 1")
    if min_count is not None and min_count < 1:
        raise UserError(f"--min-count {min_count}: must be 1 or more")
    known = open_dataset(path, BASE)
    if known.schema.ids == "hash64" and (min_count is not None or decay != 1):
        raise UserError(f"--min-count, --decay: {path} has hash64 ids, which keep no counts; leave them out")
    name = name or _named_after(input)
    source = make_source(known.manifest["source"], input, options=options, base=known.manifest["options"])
    source.files()  # refuses an input that is not there before its name is judged
    with sole_writer(path / PARTS, "a part of this dataset"):
        for left in (path / PARTS).glob("*.partial"):
            shutil.rmtree(left)  # of an append that was killed
        check_next(path, name)
        *_, last = state_names(path)
        return _append(open_dataset(path, last), name, source, min_count, decay, max_rejected, progress)


def _append(
    before: EncodedDataset,
    name: str,
    source: Source,
    min_count: int | None,
    decay: float,
    max_rejected: float,
    progress: ReportProgress | None,
) -> dict[str, Any]:
    reference = replace(reference_of(before), given_as="")
    least = before.manifest["min_count"] if min_count is None else min_count

    def number(spools: dict[str, ValueSpool], scratch: Path) -> BlockIds:
        if before.schema.ids == "hash64":
            return ReferenceIds(reference, spools)
        return GrownIds(reference, spools, scratch, least, decay)

    out = before.path / PARTS / name
    kept_at = before.path.with_name(f"{before.path.name}.{name}.rejected.tsv")
    with building(out, overwrite=False) as folder:
        manifest = encode(
            source,
            _undivided(source),
            reference.check(source.fields()),
            folder,
            number=number,
            dense=list(reference.rows.dense),
            check=partial(_check, name),
            about={
                "name": before.name,
                "min_count": least,
                "like": None,
                "part": {"name": name, "after": before.state, "decay": decay},
            },
            max_rejected=max_rejected,
            kept_at=kept_at,
            progress=progress,
        )
        _check_new(before.path, name, manifest)
    kept_at.unlink(missing_ok=True)
    return manifest


def _undivided(source: Source) -> Iterator[Block]:
    """The source's blocks as training rows."""
    return (replace(block, split=np.full_like(block.split, TRAIN)) for block in source.blocks())


def _check(name: str, first: FirstPass) -> None:
    rows, clicks = first.rows, int(first.clicks_of.sum())
    if not rows:
        raise UserError(f"part {name}: no rows; check --input")
    if clicks in (0, rows):
        what = "no clicks" if clicks == 0 else "only clicks"
        raise UserError(f"part {name}: {what} in {rows} rows; append it together with rows of the other class")


def _check_new(path: Path, name: str, made: dict[str, Any]) -> None:
    """Raises UserError when the folder has these rows already."""
    rows = {file: checksum for file, checksum in made["checksums"].items() if file.startswith("train/")}
    for state in state_names(path):
        known = read_json(state_folder(path, state) / "dataset.json")
        # At first the rows were divided, so their arrays are others.
        same = _origin(known) == _origin(made) if state == BASE else rows.items() <= known["checksums"].items()
        if same and (state != BASE or made["files"]):
            raise UserError(f"part {name}: these are the rows of {state}, which {path} has already")


def _origin(manifest: dict[str, Any]) -> tuple[list[tuple[str, int]], int, int]:
    """The names and bytes of the files that rows came from, and how many rows and clicks there were."""
    files = [(Path(file["path"]).name, file["bytes"]) for file in manifest["files"]]
    clicks = sum(manifest["rows"][split] * rate for split, rate in manifest["click_rate"].items())
    return files, sum(manifest["rows"].values()), round(clicks)


def _named_after(input: Path | None) -> str:
    if input is None or any(c in str(input) for c in "*?["):
        raise UserError("--name: missing; name the part, such as 2026-11-26")
    return input.name.split(".")[0]
