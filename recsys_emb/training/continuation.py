"""A run that goes on where another one ended: its trained stages are taken over, and a compact section follows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from recsys_emb.config import CompactConfig, RunConfig
from recsys_emb.data.store import EncodedDataset
from recsys_emb.errors import UserError
from recsys_emb.training.run import train
from recsys_emb.training.run_dir import RunDir
from recsys_emb.training.stop import StopMark
from recsys_emb.training.trainer import Reporter


def compacted_run(
    run: RunDir,
    out: Path,
    compact: CompactConfig,
    reporter: Reporter,
    data: Path | None = None,
    stop: StopMark | None = None,
) -> RunDir:
    """The finished run in ``out`` that makes ``run`` smaller and trains it on; one that was killed is continued.

    Args:
        run: finished; it stays as it is.
        out: the folder of the new run.
        compact: what to do.
        reporter: is told of steps and evaluations.
        data: where the run's dataset is now; absent: where it was in training.
        stop: ends the run at the next step, with a checkpoint, once somebody asks.

    Raises:
        UserError: the run is not finished, was made smaller already, its dataset is gone, ``out`` holds another run, or
            the budget is out of reach.
    """
    if not run.done:
        raise UserError(f"{run.path}: the run is not finished; {run.how_to_continue}")
    if run.config.compact is not None:
        raise UserError(f"{run.path}: its config has a compact section, so it was made smaller already")
    dataset = run.open_dataset(data)
    place = run.config.data.model_copy(update={"path": dataset.path})
    config = run.config.model_copy(update={"compact": compact, "data": place})
    begin_from(run, out, config, dataset)
    train(config, out, reporter, resume=True, stop=stop)
    return RunDir.open(out)


def begin_from(run: RunDir, out: Path, config: RunConfig, dataset: EncodedDataset) -> None:
    """Makes the folder of a run whose first stages are those of another; one that is there already is left alone.

    Args:
        run: its stages are complete; its checkpoints are linked, not copied, where the file system can.
        out: the folder of the new run, to be continued with ``train(config, out, ..., resume=True)``.
        config: of the new run: that of ``run`` with a compact section.
        dataset: the run's.
    """
    if (out / "config.yaml").is_file():
        return
    beside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    RunDir.create(beside, config, dataset)
    shutil.copytree(run.path / "checkpoints", beside / "checkpoints", copy_function=_link)
    for file in ("embedding.json", "metrics.jsonl"):
        shutil.copyfile(run.path / file, beside / file)
    beside.rename(out)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
