"""Everything that reads files, on damaged ones: it reads, or refuses with one line, and nothing else.

A reader damages a copy of a good file or folder, reads it, and gives how many rows, or files, it took for good.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from recsys_emb.config import load_config, parse_config
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.encode import prepare
from recsys_emb.data.folder import checksum
from recsys_emb.data.options import make_source
from recsys_emb.data.store import SPLITS, open_dataset
from recsys_emb.errors import UserError
from recsys_emb.files import read_json, read_json_lines
from recsys_emb.serving import load_artifact, write_artifact
from recsys_emb.training.checkpoint import Checkpoints, load_tensors
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.task import ClickThrough
from tests.robustness.damage import Damage, damaged
from tests.robustness.texts import criteo_text, read_criteo, read_table, table_text

RING_SECONDS, RINGS = 30, 4
"""A case hangs when it hears so many rings; none takes a hundredth of that. A suspended process hears only one."""


@contextmanager
def no_hang() -> Iterator[None]:
    heard = 0

    def ring(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard += 1
        assert heard < RINGS, "hangs"

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, RING_SECONDS, RING_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Reader:
    """``read(done, which)`` applies damages to file number ``which`` of a good original and reads it."""

    name: str
    read: Callable[[list[Damage], int], int]

    def case(self, done: list[Damage], which: int) -> int | None:
        """What was taken for good; None when it was refused, in one line."""
        with no_hang():
            try:
                return self.read(done, which)
            except UserError as error:
                refusal = str(error)
        assert len(refusal.splitlines()) == 1, refusal
        return None


# -- text and JSON ----------------------------------------------------------------------------------------------------


def tsv(scratch: Path) -> Reader:
    text = criteo_text()
    return Reader("criteo TSV", lambda done, which: read_criteo(scratch / "damaged.txt", damaged(text, done)))


def csv(scratch: Path) -> Reader:
    text = table_text()
    header = text.index(b"\n") + 1

    def read(done: list[Damage], which: int) -> int:
        intact = header if which % 8 else 0
        return read_table(scratch / "damaged.csv", text[:intact] + damaged(text[intact:], done))

    return Reader("table CSV", read)


def json_files(scratch: Path) -> Reader:
    tree = {"a": [1, 2.5, None, True, "é\n"], "b": {"c": {"d": []}, "e": -3}, "f": "../x", "g": 1e300}
    text = (json.dumps(tree, indent=1) + "\n").encode()
    lines = b"".join(json.dumps({"event": "eval", "step": n, "auc": n / 7}).encode() + b"\n" for n in range(6))
    yaml = b"data: {path: x}\nmodel: {name: fm, embedding_dim: 4}\ntraining:\n  epochs: 1\n  learning_rate: 1.0e-3\n"

    def read(done: list[Damage], which: int) -> int:
        file, content = scratch / "damaged.json", (text, lines, yaml)[which % 3]
        file.write_bytes(damaged(content, done))
        if which % 3 == 0:
            return len(read_json(file))
        if which % 3 == 1:
            return len(read_json_lines(file))
        return len(load_config(file).model_dump())

    return Reader("JSON, JSON lines, YAML", read)


# -- folders ----------------------------------------------------------------------------------------------------------


class Folder:
    """A copy of a good folder, in which one file is damaged at a time."""

    def __init__(self, good: Path, scratch: Path) -> None:
        shutil.copytree(good, scratch)
        self.path = scratch
        self.files = sorted(f for f in scratch.rglob("*") if f.is_file())

    @contextmanager
    def damaged(self, done: list[Damage], which: int) -> Iterator[Path]:
        """One of the files, damaged until the block ends."""
        file = self.files[which % len(self.files)]
        good = file.read_bytes()
        # Big arrays are zeros and values; what can go wrong is mostly at the front.
        front = len(good) if which // len(self.files) % 2 else min(len(good), 128)
        file.write_bytes(damaged(good[:front], done) + good[front:])
        try:
            yield file
        finally:
            file.write_bytes(good)


def small_dataset(out: Path) -> Path:
    """60 rows with a field of every kind."""
    rows = ["y,w,price,user,item,tags,history,part"]
    for i in range(60):
        history = " ".join(str(j % 9) for j in range(i % 4))
        part = "train" if i < 40 else ("valid", "test")[i // 2 % 2]
        rows.append(f"{i % 2},{1 + i % 3},{i / 7},u{i % 5},{i % 9},{'|'.join('abc'[: i % 3])},{history},{part}")
    out.parent.mkdir(exist_ok=True)
    raw = out.with_suffix(".csv")
    raw.write_text("\n".join(rows) + "\n")
    options = {
        **{"label": "y", "weight": "w", "dense": ["price"], "categorical": ["user", "item"], "user": "user"},
        "multi_valued": [{"name": "tags", "separator": "|"}],
        "sequences": [{"name": "history", "target": "item", "separator": " ", "max_length": 5}],
        "split": {"column": "part"},
    }
    prepare(make_source("table", raw, options=options), out)
    return out


def dataset(scratch: Path) -> Reader:
    """All batches of all splits, whose ids are those of the schema."""
    folder = Folder(small_dataset(scratch / "prepared"), scratch / "dataset")

    def read(done: list[Damage], which: int) -> int:
        with folder.damaged(done, which):
            opened = open_dataset(folder.path)
            rows = 0
            for split in SPLITS:
                ClickThrough().check(opened.split(split))
                for batch in BatchLoader(opened.split(split), opened.schema, 16):
                    rows += len(batch)
                    fields = {f.name: f.vocabulary for f in opened.schema.embedded}
                    assert batch.sequences is not None
                    for kjt in (batch.sparse, batch.sequences):
                        for key, bags in kjt.to_dict().items():
                            assert len(bags.lengths()) == len(batch)
                            ids, size = bags.values(), opened.schema.vocabularies[fields[key]]
                            assert not len(ids) or (int(ids.min()) >= 0 and int(ids.max()) < size)
                    assert set(batch.labels.unique().tolist()) <= {0.0, 1.0}
            for name in opened.schema.vocabularies:
                assert len(opened.counts(name)) == opened.schema.vocabularies[name]
            assert len(opened.fingerprint) == 32
            assert isinstance(opened.name, str)
            return rows

    return Reader("prepared dataset", read)


def small_artifact(scratch: Path, vocabulary: str) -> Path:
    tree = {
        "data": {"path": str(small_dataset(scratch / "prepared"))},
        "model": {"name": "deepfm", "embedding_dim": 2, "hidden": [4]},
        "training": {"epochs": 1, "batch_size": 16, "precision": "fp32"},
        "device": "cpu",
    }
    train(parse_config(tree), scratch / "run", Silent())
    write_artifact(load_run(scratch / "run"), scratch / "good", evaluate=False, vocabulary=vocabulary)
    return scratch / "good"


def artifact(scratch: Path, vocabulary: str = "exact") -> Reader:
    """With the checksums of a forger in every other case; weights are then what the file says, of the right shapes."""
    good = small_artifact(scratch, vocabulary)
    folder = Folder(good, scratch / "artifact")
    manifest = folder.path / "artifact.json"
    shapes = {k: (v.shape, v.dtype) for k, v in load_artifact(good, "cpu").model.state_dict().items()}

    def read(done: list[Damage], which: int) -> int:
        whole = manifest.read_bytes()
        with folder.damaged(done, which) as file:
            name = file.relative_to(folder.path).as_posix()
            if done[0][1] % 2 and file != manifest:
                tree = json.loads(whole)
                tree["checksums"][name] = checksum(file)
                manifest.write_text(json.dumps(tree))
            try:
                loaded = load_artifact(folder.path, "cpu")
                _ = loaded.encoder
                if file.name != "artifact.json":
                    assert {k: (v.shape, v.dtype) for k, v in loaded.model.state_dict().items()} == shapes
                return 1
            finally:
                if file != manifest:
                    manifest.write_bytes(whole)

    return Reader("artifact", read)


def fingerprints(scratch: Path) -> Reader:
    """An artifact with fingerprints of its vocabularies."""
    return artifact(scratch, "fingerprint")


def checkpoint(scratch: Path) -> Reader:
    """The newest checkpoint is read as it was written, or passed over."""
    made = Checkpoints(scratch / "good" / "train")
    for step in (5, 10):
        tensors = {"w": torch.full((3, 2), float(step)), "b": torch.arange(4)}
        made.save(step, tensors, {"m": torch.zeros(3, 2)}, {"step": step}, 5)
    folder = Folder(scratch / "good", scratch / "checkpoints")
    read_from = Checkpoints(folder.path / "train")

    def read(done: list[Damage], which: int) -> int:
        with folder.damaged(done, which):
            last = read_from.last()
            if last is None:
                raise UserError("both are damaged")
            step = int(last.name.removeprefix("step-"))
            assert torch.equal(load_tensors(last / "model.safetensors")["w"], torch.full((3, 2), float(step)))
            assert read_json(last / "state.json") == {"step": step}
            return step

    return Reader("checkpoint", read)


READERS: dict[str, Callable[[Path], Reader]] = {
    "tsv": tsv,
    "csv": csv,
    "json": json_files,
    "dataset": dataset,
    "artifact": artifact,
    "fingerprints": fingerprints,
    "checkpoint": checkpoint,
}
