"""A run is a folder that explains itself.

RUN/
  config.yaml        the resolved config; `train` takes it as it is
  env.json           versions and machine
  schema.json        the dataset's fields
  dataset.json       where the dataset was, its state, and its vocabularies' checksums
  embedding.json     per stage: the backend and its planned sizes
  metrics.jsonl      one JSON object a line: {"event": "train" | "eval" | "search", "stage", "step", "epoch", ...}
  tensorboard/       the same for TensorBoard
  checkpoints/       one folder a stage (checkpoint.py)
  test_predictions.safetensors   logits and labels of the test split, to compare runs row by row
  report.json        the final figures
  LOCK               held by the process that writes the folder (lock.py)
  DONE               written last: without it the run is not finished
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_emb.config import RunConfig, dump_config, load_config
from recsys_emb.data.encoding import Encoding
from recsys_emb.data.like import how_to_prepare_like
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.store import EncodedDataset
from recsys_emb.errors import UserError
from recsys_emb.files import read_json, read_json_as, write_json, write_text
from recsys_emb.lock import LOCK
from recsys_emb.training.run_files import how_to_continue, read_metrics
from recsys_emb.training.runtime import environment

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_BEGINNING = {"env.json", "schema.json", "dataset.json", LOCK}
"""What a folder may hold before ``config.yaml`` makes it a run."""


class RunDir:
    """Paths and files of one run. Make it with ``create`` or ``open``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: RunConfig, dataset: EncodedDataset) -> RunDir:
        """A new folder. Raises UserError when ``path`` holds something already or cannot be written."""
        check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "env.json", environment())
            write_json(path / "schema.json", dataset.schema.model_dump(mode="json"))
            places = {"path": str(dataset.path.resolve()), "folder": str(dataset.folder.resolve())}
            facts = {**places, "state": dataset.state, "name": dataset.name, "fingerprint": dataset.fingerprint}
            known = {"dense": dataset.encoding.dense, "checksums": dataset.encoding.vocabularies}
            write_json(path / "dataset.json", {**facts, **known})
            write_text(
                path / "config.yaml", dump_config(config.at_state_of(dataset))
            )  # last: it is what makes the folder a run
        except OSError as error:
            raise UserError(f"--out {path}: cannot be written ({error.strerror})") from None
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run, finished or not. Raises UserError when it is none."""
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path}: not a run folder (no config.yaml); `recsys-emb train` makes one")
        return cls(path)

    @property
    def config(self) -> RunConfig:
        return load_config(self.path / "config.yaml")

    @property
    def schema(self) -> DatasetSchema:
        return read_json_as(self.path / "schema.json", DatasetSchema)

    def open_dataset(self, data: Path | None = None) -> EncodedDataset:
        """The dataset of the run, found from whatever folder; or ``data``, one that was prepared alike.

        Raises:
            UserError: it is gone, or the run's ids do not mean there what they meant in training.
        """
        recorded = Path(read_json(self.path / "dataset.json").get("path", ""))
        path = data or (recorded if recorded.is_dir() else self.config.data.path)
        if data is None and not path.exists():
            raise UserError(
                f"{self.path}: its dataset {recorded} is gone; put it back, or pass --data DIR to evaluate or compact"
            )
        dataset = self.config.data.open(path)
        self.check_dataset(dataset)
        return dataset

    def check_dataset(self, dataset: EncodedDataset) -> None:
        """Raises UserError unless the run's ids mean in ``dataset`` what they meant in training."""
        known, schema = read_json(self.path / "dataset.json"), self.schema
        if dataset.schema == schema and dataset.fingerprint == known.get("fingerprint"):
            return
        encoding = Encoding(schema, known.get("dense"), known.get("checksums", {}))
        wrong = encoding.difference(dataset.encoding)
        raise UserError(
            f"{dataset.path} was not prepared like the dataset that {self.path} was trained on: {wrong}; "
            f"{how_to_prepare_like(known.get('folder') or known.get('path', 'DATASET'))}"
        )

    @property
    def done(self) -> bool:
        return (self.path / "DONE").is_file()

    @property
    def how_to_continue(self) -> str:
        """Advice for messages about an unfinished run."""
        return how_to_continue(self.path)

    @property
    def report(self) -> dict[str, Any]:
        """The final figures. Raises UserError while the run is unfinished."""
        if not self.done:
            raise UserError(f"{self.path}: the run is not finished; {self.how_to_continue}")
        return read_json(self.path / "report.json")

    def checkpoints(self, stage: str) -> Path:
        return self.path / "checkpoints" / stage

    def finish(self, report: dict[str, Any]) -> None:
        """Writes the report, then the mark that the run is complete."""
        write_json(self.path / "report.json", report)
        write_text(self.path / "DONE", "")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``, oldest first; none before training starts. UserError names a broken line."""
        return read_metrics(self.path)

    @contextmanager
    def log(self, stage: str, step: int, evaluated: int) -> Iterator[MetricsLog]:
        """Appends to ``metrics.jsonl`` and TensorBoard.

        Lines that this stage wrote after ``step``, or on evaluations after step ``evaluated``, are dropped first.
        """
        from torch.utils.tensorboard import SummaryWriter  # takes a while to import, and only trainings write

        last = {"eval": evaluated}
        kept = [m for m in self.metrics() if m.get("stage") != stage or m["step"] <= last.get(m["event"], step)]
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in kept))
        board = SummaryWriter(str(self.path / "tensorboard" / stage), purge_step=step + 1 if step else None)
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            try:
                yield MetricsLog(stage, file, board)
            finally:
                board.close()


def check_free(path: Path) -> None:
    """Raises UserError when a run may not begin in ``path``: something is there that no killed beginning left."""
    if path.exists() and (not path.is_dir() or {p.name.removesuffix(".tmp") for p in path.iterdir()} - _BEGINNING):
        raise UserError(f"--out {path}: exists already; continue it with --resume, or name a new folder")


class MetricsLog:
    """Where the trainer writes its figures."""

    def __init__(self, stage: str, file: Any, board: SummaryWriter) -> None:
        self._stage = stage
        self._file = file
        self._board = board

    def write(self, event: str, step: int, epoch: int, **figures: float | None) -> None:
        record = {"event": event, "stage": self._stage, "step": step, "epoch": epoch, **figures}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        for name, value in figures.items():
            if value is not None:
                self._board.add_scalar(f"{event}/{name}", value, step)


class NoLog(MetricsLog):
    """The log of a process that leaves the writing to another."""

    def __init__(self) -> None:
        pass

    def write(self, event: str, step: int, epoch: int, **figures: float | None) -> None: ...


def load_run(path: str | Path) -> RunDir:
    """Opens a run folder: ``.config``, ``.report``, ``.metrics()``, ``.schema``."""
    return RunDir.open(Path(path))
