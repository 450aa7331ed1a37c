"""Scores of a supernet against plain evaluations and against field_dim on the truncated rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from recsys_emb.config import RunConfig, parse_config
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel, build_model
from recsys_emb.search.supernet import Supernet
from recsys_emb.training import run as running
from recsys_emb.training.checkpoint import Checkpoints
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run

WIDTHS = {"C1": 0, "C2": 1, "C3": 2, "C4": 0, "C7": 4, "C16": 1}


def config_for(data: Path, model: str = "deepfm", **embedding: Any) -> RunConfig:
    tree = {
        "data": {"path": str(data)},
        "model": {"name": model, "embedding_dim": 4, **({} if model == "lr" else {"hidden": [8]})},
        "embedding": embedding,
        "training": {"epochs": 2, "batch_size": 256, "precision": "fp32", "learning_rate": 0.01},
        "device": "cpu",
    }
    return parse_config(tree)


@pytest.fixture(scope="module")
def supernets(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Supernet]]:
    folder = tmp_path_factory.mktemp("supernets")
    models = ("deepfm", "dcnv2")  # with a first-order column and without
    return {m: (folder / m, Supernet.train(config_for(prepared, m), folder / m, Silent())) for m in models}


def weights(run: Path) -> dict[str, torch.Tensor]:
    best = Checkpoints(load_run(run).checkpoints("train")).best()
    assert best is not None
    return load_file(best / "model.safetensors")


def valid_auc(model: CTRModel, data: Path) -> float:
    """By scikit-learn, in one batch."""
    dataset = open_dataset(data)
    (batch,) = BatchLoader(dataset.split("valid"), dataset.schema, 10**6)
    with torch.no_grad():
        return float(roc_auc_score(batch.labels.numpy(), model.eval()(batch).numpy()))


@pytest.mark.parametrize("model", ["deepfm", "dcnv2"])
def test_full_width_is_the_evaluation_of_the_same_weights(
    supernets: dict[str, tuple[Path, Supernet]], prepared: Path, model: str
) -> None:
    path, supernet = supernets[model]
    full = config_for(prepared, model)
    dataset = open_dataset(prepared)
    plain = build_model(full.model, dataset.schema, running.plan(full, dataset).build())
    trained = {k.replace("parts.nested.table", "table"): v for k, v in weights(path).items()}
    plain.load_state_dict(trained)
    assert supernet.score({}) == pytest.approx(valid_auc(plain, prepared), abs=1e-4)
    assert running.evaluate(load_run(path), "valid")["auc"] == supernet.score({})
    assert supernet.serving_bytes({}) == running.plan(full, dataset).build("meta").serving_bytes()


@pytest.mark.parametrize("model", ["deepfm", "dcnv2"])
def test_a_candidate_is_field_dim_on_the_truncated_rows(
    supernets: dict[str, tuple[Path, Supernet]], prepared: Path, model: str
) -> None:
    path, supernet = supernets[model]
    options = {"widths": WIDTHS, "default_width": 2}
    cut = config_for(prepared, model, backend="field_dim", options=options)
    dataset = open_dataset(prepared)
    planned = running.plan(cut, dataset)
    backend, trained = planned.build(), weights(path)
    table = trained.pop("embedding.backend.parts.nested.table.weight")
    for i, rows in enumerate(table.split([t.num_embeddings for t in planned.spec.tables])):
        backend.load_rows(i, rows)
    plain = build_model(cut.model, dataset.schema, backend)
    missing = plain.load_state_dict(trained, strict=False)
    assert not missing.unexpected_keys
    assert all(k.startswith("embedding.backend.") for k in missing.missing_keys)
    widths = {name: WIDTHS.get(name, 2) for name in supernet.tables}
    before = supernet.score({})
    assert supernet.score(widths) == pytest.approx(valid_auc(plain, prepared), abs=1e-4)
    assert supernet.score(widths) != before
    assert supernet.score({}) == before  # a candidate leaves nothing behind
    assert supernet.serving_bytes(widths) == backend.serving_bytes()
    assert running.plan(config_for(prepared, model, backend="field_dim", options={"widths": widths}), dataset).build(
        "meta"
    ).serving_bytes() == supernet.serving_bytes(widths)


def test_the_same_seed_gives_the_same_supernet_whole_or_resumed(
    supernets: dict[str, tuple[Path, Supernet]], prepared: Path, tmp_path: Path
) -> None:
    path, supernet = supernets["deepfm"]

    class Killed(Exception):
        pass

    class KilledAfterAnEpoch(Silent):
        def evaluation(self, *_: Any) -> None:
            self.reached = True

        def step(self, *_: Any) -> None:
            if getattr(self, "reached", False):
                raise Killed

    config = config_for(prepared)
    with pytest.raises(Killed):
        Supernet.train(config, tmp_path / "run", KilledAfterAnEpoch())
    resumed = Supernet.train(config, tmp_path / "run", Silent(), resume=True)
    again = weights(tmp_path / "run")
    assert all(torch.equal(w, again[k]) for k, w in weights(path).items())
    assert resumed.score(WIDTHS) == supernet.score(WIDTHS)
    other = Supernet.train(config.model_copy(update={"seed": 2}), tmp_path / "other", Silent())
    assert other.score(WIDTHS) != supernet.score(WIDTHS)


def test_the_test_split_is_left_alone(supernets: dict[str, tuple[Path, Supernet]]) -> None:
    path, supernet = supernets["deepfm"]
    assert not load_run(path).done
    assert supernet.choices == (0, 1, 2, 4)


def test_it_opens_optembeds_supernet_and_scores_as_its_search_does(prepared: Path, tmp_path: Path) -> None:
    options = {"generations": 0, "mutations": 4, "crossovers": 4, "parents": 4, "alpha": 0.01}
    report = running.train(
        config_for(prepared, backend="optembed", budget=0.2, options=options), tmp_path / "run", Silent()
    )
    run = load_run(tmp_path / "run")
    supernet = Supernet.open(run.path)
    assert supernet.choices == (1, 2, 3, 4)
    scored = [m["auc"] for m in run.metrics() if m["event"] == "search"]
    uniform = [supernet.score(dict.fromkeys(supernet.tables, w)) for w in (4, 2, 1)]
    assert uniform == scored[:3]
    assert len(set(uniform)) == 3
    found = running.restore(run)[0].embedding.backend.config
    widths = dict(zip(supernet.tables, found.widths))
    assert supernet.score(widths) == max(scored)
    assert supernet.serving_bytes(widths) == report["serving_bytes"]
    assert supernet.serving_bytes({}) <= 0.2 * report["full_bytes"]


def test_mistakes_are_one_line(supernets: dict[str, tuple[Path, Supernet]], prepared: Path, tmp_path: Path) -> None:
    _, supernet = supernets["deepfm"]
    with pytest.raises(UserError, match=r"widths.C99: no such table; allowed: C1, C2"):
        supernet.score({"C99": 1})
    with pytest.raises(UserError, match=r"widths.C1: 5 is too wide; allowed: 0 to 4$"):
        supernet.serving_bytes({"C1": 5})
    with pytest.raises(UserError, match=r"not a run folder"):
        Supernet.open(tmp_path)
    running.train(config_for(prepared), tmp_path / "full", Silent())
    with pytest.raises(UserError, match=r"full does not train nested widths; matryoshka and optembed do$"):
        Supernet.open(tmp_path / "full")
