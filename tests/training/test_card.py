"""Everything that a run does, on a pretended card: nothing is left on the host, and no step waits for long.

What a card is asked for is the same as on the CPU, so its predictions are the CPU's.
"""

from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.data.batches import Batch, BatchLoader, on_device
from recsys_emb.data.encode import prepare
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings import make_embedding_bag_collection
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.embeddings.posttraining import list_posttraining
from recsys_emb.models.base import model_registry
from recsys_emb.serving import load_artifact, write_artifact
from recsys_emb.training import run as running
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.stop import StopMark, Stopped
from recsys_emb.training.trainer import Trainer, TrainingState
from tests.data.memory_source import FIELDS, MemorySource
from tests.pretend_device import DEVICE, pretended_card

UNBOUNDED = ("full", "field_dim", "matryoshka")
"""Backends that train at any budget, or at none."""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 rows of two single-valued fields, tags, two aligned histories and three numbers."""
    draw = random.Random(1)

    def ids(field: str, most: int, number: int) -> list[str]:
        return [f"{field}{int(most * draw.random() ** 2)}" for _ in range(number)]

    rows = 600
    lengths = [draw.randrange(4) for _ in range(rows)]
    frame = pl.DataFrame(
        {
            "user": ids("u", 60, rows),
            "item": ids("i", 90, rows),
            "tags": [ids("t", 20, draw.randrange(4)) for _ in range(rows)],
            "history": [ids("i", 90, n) for n in lengths],
            "again": [ids("i", 90, n) for n in lengths],
            **{name: [draw.random() for _ in range(rows)] for name in ("plain", "price", "views")},
        },
        schema_overrides={name: pl.List(pl.String) for name in ("tags", "history", "again")},
    )
    labels = [int(user < "u3") for user in frame["user"]]
    split = [0 if i < 400 else 1 + i % 2 for i in range(rows)]
    out = tmp_path_factory.mktemp("small") / "memory"
    prepare(MemorySource(FIELDS, frame, labels, split, [draw.random() for _ in range(rows)]), out, name="small")
    return out


def config_of(data: Path, model: str, backend: str, device: str, **more: Any) -> RunConfig:
    options = {"hidden": [8], "attention_dim": 4, "attention_layers": 1, "attention_hidden": [4]}
    known = model_registry.get(model).Config.model_fields
    training = {"batch_size": 64, "max_steps": 4, "eval_every": 2, "precision": "fp32", "l2_embedding": 1e-3}
    return parse_config(
        {
            "data": {"path": str(data)},
            "model": {"name": model, "embedding_dim": 4, **{k: v for k, v in options.items() if k in known}},
            "embedding": {"backend": backend, "budget": None if backend in UNBOUNDED else 0.5},
            "training": {**training, **more.pop("training", {})},
            "device": device,
            **more,
        }
    )


class StopAt(Silent):
    def __init__(self, step: int | None) -> None:
        self.stop, self.at = StopMark(), step

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        if progress.step == self.at:
            self.stop.signal = 15


def predictions(config: RunConfig, folder: Path, stopped_at: int | None = None) -> np.ndarray:
    """Of the test split, by the artifact of a run, which may be stopped after a step and go on."""
    run, stopping = folder / "run", StopAt(stopped_at)
    with suppress(Stopped):
        running.train(config, run, stopping, stop=stopping.stop)
    if stopped_at is not None:
        running.train(config, run, Silent(), resume=True)
    write_artifact(load_run(run), folder / "artifact")
    split = open_dataset(config.data.path).split("test")
    return load_artifact(folder / "artifact", config.device).predict(split)


QUICK = ("int8", "pq", "prune")
"""Post-training methods of a kind each; the others only under stress."""
CASES = [
    *(pytest.param(name, "full", {}, id=name) for name in model_registry.names()),
    *(pytest.param("deepfm", name, {}, id=name) for name in backend_registry.names() if name != "full"),
    *(
        pytest.param("lr", "full", {"training": {"embedding_optimizer": name, "learning_rate": 0.1}}, id=name)
        for name in ("rowwise_adagrad", "sgd", "dense_adam")
    ),
    *(
        pytest.param(
            "fm",
            "full",
            {"compact": {"method": name, "budget": 0.7, "finetune": {"epochs": 1}}},
            id=name,
            marks=() if name in QUICK else pytest.mark.stress,
        )
        for name in list_posttraining()
    ),
]


@pytest.mark.parametrize(("model", "backend", "more"), CASES)
def test_a_run_on_a_card_predicts_what_one_on_the_cpu_does(
    model: str, backend: str, more: dict[str, Any], small: Path, tmp_path: Path
) -> None:
    """Training, evaluation, catch-up, checkpoints, going on, compaction, serving."""
    expected = predictions(config_of(small, model, backend, "cpu", **dict(more)), tmp_path / "cpu")
    with pretended_card() as card:
        found = predictions(config_of(small, model, backend, "cuda", **dict(more)), tmp_path / "card", stopped_at=3)
        assert card.uploads  # it was really there
    np.testing.assert_allclose(found, expected, atol=1e-4)


# -- what a step costs beside the work --------------------------------------------------------------------------------

WAITS, UPLOADS = 3, 2
"""Of a step at most, the look at its loss with it, which most steps do without. Not counted: steps that end an epoch,
and those at which ``cafe`` and codes that are trained give rows and cells to others."""
MORE_WAITS = {"cafe": 1}
"""Its sketch must know the different ids of a batch, those that are new to it, and how many enter a bucket in turn."""


def costs_of_steps(config: RunConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Counter, Counter]:
    """The lines at which the worst of a run's steps waited, and those at which one uploaded."""
    worst = Counter[str](), Counter[str]()
    with pretended_card() as card:

        def step(self: Trainer, batch: Batch) -> None:
            card.reset()
            real_step(self, batch)

        def count(self: Trainer, samples: int, begin: float) -> None:
            real_count(self, samples, begin)
            for i, found in enumerate((card.waits, card.uploads)):
                if self.progress.batch and found.total() > worst[i].total():
                    worst[i].clear()
                    worst[i].update(found)

        real_step, real_count = Trainer._step, Trainer._count
        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "_step", step)
            patched.setattr(Trainer, "_count", count)
            running.train(config, folder, Silent(), test=False)
    return worst


@pytest.mark.parametrize(
    ("model", "backend"),
    [
        *(("fm", name) for name in backend_registry.names()),
        *((name, "full") for name in model_registry.names() if name not in ("fm", "bst", "dien", "din")),
    ],
)
def test_a_step_hardly_waits_or_uploads_however_many_fields_there_are(
    model: str, backend: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 26 fields; :func:`test_fields_of_many_values_cost_no_wait` has three and all forms of fields."""
    training = {"batch_size": 256, "max_steps": 3, "eval_every": None}
    config = config_of(prepared, model, backend, "cuda", training=training)
    waits, uploads = costs_of_steps(config, tmp_path / "run", monkeypatch)
    assert waits.total() <= WAITS + MORE_WAITS.get(backend, 0), waits
    assert uploads.total() <= UPLOADS, uploads


@pytest.mark.parametrize(("model", "backend"), [("din", "full"), ("deepfm", "qr"), ("deepfm", "mixed_dim")])
def test_fields_of_many_values_cost_no_wait(
    model: str, backend: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"batch_size": 64, "max_steps": 3, "eval_every": None}
    config = config_of(small, model, backend, "cuda", training=training)
    waits, uploads = costs_of_steps(config, tmp_path / "run", monkeypatch)
    assert waits.total() <= WAITS, waits
    assert uploads.total() <= UPLOADS, uploads


def test_batches_come_from_pinned_memory_and_nobody_waits(small: Path) -> None:
    dataset = open_dataset(small)
    loader = BatchLoader(dataset.split("train"), dataset.schema, 64)
    with pretended_card() as card:
        for here, there in zip(loader, on_device(loader, DEVICE)):
            for name, part in there._parts().items():
                tensors = [part] if isinstance(part, torch.Tensor) else [part.values(), part.lengths()]
                assert all(t.device == DEVICE for t in tensors), name
            assert there.sparse.length_per_key() == here.sparse.length_per_key()
            assert (there.whole, len(there)) == (here.whole, len(here))
        assert card.uploads
        assert not card.unpinned
        assert not card.waits


def test_a_collection_waits_once_for_all_its_tables() -> None:
    """For its ids to be checked, and once for the lengths of a batch that does not know them."""
    names = [f"f{i}" for i in range(26)]
    tables = [EmbeddingBagConfig(name=n, embedding_dim=4, num_embeddings=9, feature_names=[n]) for n in names]
    lengths = torch.tensor([1, 2]).repeat(26)
    ids = torch.arange(int(lengths.sum())) % 9
    for counts in ([3] * 26, None):
        torch.manual_seed(1)
        expected = make_embedding_bag_collection(tables)(KeyedJaggedTensor(names, ids, lengths=lengths)).values()
        with pretended_card() as card:
            torch.manual_seed(1)
            collection = make_embedding_bag_collection(tables).to(DEVICE)
            on_card = KeyedJaggedTensor(names, ids, lengths=lengths, length_per_key=counts).to(DEVICE)
            card.reset()
            found = collection(on_card).values()
            assert card.waits.total() == (2 if counts is None else 1), card.waits
            assert not card.uploads
            torch.testing.assert_close(found.cpu(), expected)
            ids_beyond = torch.full_like(ids, 9)
            with pytest.raises(IndexError, match="table 'f0': id 9 is outside"):
                collection(KeyedJaggedTensor(names, ids_beyond, lengths=lengths).to(DEVICE))
