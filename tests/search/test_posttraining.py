"""Searches whose candidates are made of a trained run: one training for all, several budgets, the best tuned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from recsys_emb.config import load_config
from recsys_emb.data.batches import BatchLoader
from recsys_emb.data.store import open_dataset
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.errors import UserError
from recsys_emb.search.run import run_search
from recsys_emb.search.terminal import print_budgets, quiet
from recsys_emb.training import run as running
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import load_run
from recsys_emb.training.trainer import TrainingState
from tests.search.conftest import MakeSearch

METHODS = {
    "compact.method": {
        "choices": {
            "int8": {},
            "int4": {"compact.options.scales": {"choices": ["fp32", "fp16"]}},
            "svd": {},
            "quantized_svd": {"compact.options.bits": {"choices": [4, 8]}},
        }
    }
}
TUNED = ("training.epochs=1", "compact.method=int8", "compact.finetune.epochs=1")


class Counts(Silent):
    """How many steps were trained in all."""

    def __init__(self) -> None:
        self.steps = 0

    def step(self, progress: TrainingState, steps: int, loss: float) -> None:
        self.steps += 1


@pytest.fixture(scope="module")
def found(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], int]:
    """A search at two budgets: its folder, what it gave, and the steps that it trained."""
    from recsys_emb.search.config import load_search
    from tests.search.conftest import search_file

    folder = tmp_path_factory.mktemp("posttraining")
    keys = {"space": METHODS, "baselines": ["mixed_dim", "quantized_svd"], "retrain": 2, "sampler": "random"}
    search = load_search(search_file(prepared, folder, **keys), TUNED, ["0.6", "0.35"])
    counts = Counts()
    return folder / "out", run_search(search, folder / "out", 12, counts, quiet), counts.steps


def rows(folder: Path, file: str = "trials.parquet") -> list[dict[str, Any]]:
    return pl.read_parquet(folder / file).to_dicts()


def test_one_training_serves_all_candidates(found: tuple[Path, dict[str, Any], int], prepared: Path) -> None:
    out, _, steps = found
    (base,) = (p for p in (out / "bases").iterdir() if p.is_dir())
    assert load_run(base).config.compact is None
    assert not (out / "trials").exists()
    epoch = -(-len(open_dataset(prepared).split("train")) // 512)
    carried_out = [r for at in ("0.6", "0.35") for r in rows(out / at) if r["run"] and r["state"] == "complete"]
    tuned = [r for r in carried_out if "mixed_dim" not in r["run"]]
    assert len(tuned) >= 4
    assert steps == epoch * (1 + len(carried_out))  # the base, an epoch of tuning for each, and two of mixed_dim


def test_a_candidate_is_scored_as_what_the_method_makes_of_the_base(
    found: tuple[Path, dict[str, Any], int], prepared: Path
) -> None:
    """By scikit-learn, over the whole validation split."""
    out, summary, _ = found
    (base,) = (p for p in (out / "bases").iterdir() if p.is_dir())
    model, _ = running.restore(load_run(base))
    trained, dataset = model.embedding.backend, open_dataset(prepared)
    (batch,) = BatchLoader(dataset.split("valid"), dataset.schema, 10**6)
    complete = [c for c in rows(out / "0.6", "candidates.parquet") if c["state"] == "complete"]
    assert len({c["score"] for c in complete}) > 2
    for candidate in complete:
        method = candidate["param:compact.method"]
        options = {
            key.split(".")[-1].split("[")[0]: int(value) if str(value).isdecimal() else value
            for key, value in candidate.items()
            if key.startswith("param:compact.options") and f"[{method}]" in key
        }
        budget = summary["budgets"][0]["budget_bytes"]
        model.embedding.backend = form = compress(trained, method, f"{budget}B", dataset.stats(), options)
        with torch.no_grad():
            expected = roc_auc_score(batch.labels.numpy(), model.eval()(batch).numpy())
        assert candidate["score"] == pytest.approx(expected, abs=1e-6)
        assert candidate["serving_bytes"] == form.serving_bytes() <= budget
        assert candidate["run"] is None


def test_each_budget_has_a_winner_that_its_best_yaml_trains(
    found: tuple[Path, dict[str, Any], int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, summary, _ = found
    assert summary == json.loads((out / "search.json").read_text())
    assert [b["at"] for b in summary["budgets"]] == ["0.6", "0.35"]
    valid = [b["winner"]["valid_auc"] for b in summary["budgets"]]
    assert valid[0] >= valid[1]  # what fits into less fits into more
    for budget in summary["budgets"]:
        own = json.loads((out / budget["at"] / "search.json").read_text())
        assert own["winner"] == budget["winner"]
        winner, folder = own["winner"], out / budget["at"]
        assert winner["serving_bytes"] <= budget["budget_bytes"] == own["budget_bytes"]
        assert winner["valid_auc"] >= max(r["auc"] for r in rows(folder) if r["auc"])
        assert sum(t["bytes"] for t in winner["tables"]) == winner["serving_bytes"]
        report = load_run(folder / winner["run"]).report
        assert report["auc"] == winner["test"]["auc"]
        assert {b["name"] for b in own["baselines"]} == {
            f"{m} at {budget['at']}" for m in ("mixed_dim", "quantized_svd")
        }
        assert own["lead"]["mean"] == pytest.approx(own["lead"]["trial_test"][0] - own["lead"]["baseline_test"][0])
        assert (folder / "report.html").is_file()
    assert summary["full"]["serving_bytes"] == summary["full_bytes"]
    assert load_run(out / summary["full"]["run"]).report["auc"] == summary["full"]["test"]["auc"]
    page = (out / "report.html").read_text()
    print_budgets(summary, out)
    said = capsys.readouterr().out
    for budget in summary["budgets"]:
        assert f"{budget['winner']['test']['auc']:.4f}" in page
        assert f"{budget['winner']['test']['auc']:.5f}" in said
        lost = summary["full"]["test"]["auc"] - budget["winner"]["test"]["auc"]
        assert f"{lost:.4f}" in page
        assert f"{lost:.5f}" in said

    best = load_config(out / "0.35/best.yaml")
    again = running.train(best, tmp_path / "again", Silent())
    winner = summary["budgets"][1]["winner"]
    assert again["serving_bytes"] == winner["serving_bytes"]
    assert again["auc"] == pytest.approx(winner["test"]["auc"], abs=1e-9)


def test_the_best_candidates_are_carried_out(found: tuple[Path, dict[str, Any], int]) -> None:
    out, _, _ = found
    for at in ("0.6", "0.35"):
        scored = [c for c in rows(out / at, "candidates.parquet") if c["state"] == "complete"]
        baseline = [c for c in scored if c["param:compact.options.bits[quantized_svd]"] == 4]  # carried out already
        best = sorted((c for c in scored if c not in baseline), key=lambda c: (-c["score"], c["number"]))
        carried_out = {r["number"]: r for r in rows(out / at) if r["number"] is not None}
        assert [c["number"] for c in best[:2]] == list(carried_out)
        for candidate in best[:2]:
            row = carried_out[candidate["number"]]
            run = load_run(out / at / row["run"])
            assert row["serving_bytes"] == candidate["serving_bytes"]
            stages = json.loads((run.path / "checkpoints/compress/stage.json").read_text())
            assert stages["valid"]["auc"] == pytest.approx(candidate["score"], abs=1e-6)
            assert row["auc"] >= candidate["score"] - 1e-6  # tuning keeps where it starts when it gains nothing


def test_seeds_and_processes_share_the_bases(make_search: MakeSearch, tmp_path: Path) -> None:
    keys = {"space": METHODS, "baselines": ["int8"], "budget": ["0.8", "0.7"], "retrain": 1, "sampler": "random"}
    summary = run_search(
        make_search("training.epochs=1", **keys), tmp_path / "out", 4, Silent(), quiet, jobs=2, seeds=2
    )
    bases = [load_run(p) for p in (tmp_path / "out/bases").iterdir() if p.is_dir()]
    assert sorted(base.config.seed for base in bases) == [1, 2]
    for base in bases:  # by one process alone, each step once
        steps = [m["step"] for m in base.metrics() if m["event"] == "train"]
        assert steps == sorted(set(steps))
    leads = [b["lead"] for b in summary["budgets"] if b["lead"] is not None]
    assert leads
    assert all(lead["seeds"] == [1, 2] and lead["std"] is not None for lead in leads)


def test_trained_and_compressed_candidates_share_a_space(make_search: MakeSearch, tmp_path: Path) -> None:
    space = {"embedding.backend": {"choices": {"hash": {}, "full": {"compact.method": {"choices": ["int8", "svd"]}}}}}
    rate = {"training.learning_rate": {"choices": [0.01, 0.02]}}
    search = make_search("training.epochs=1", budget="0.6", space=space | rate, sampler="random", seed=2)
    summary = run_search(search, tmp_path / "out", 6, Silent(), quiet)
    trained, scored = rows(tmp_path / "out"), rows(tmp_path / "out", "candidates.parquet")
    assert {r["param:embedding.backend"] for r in trained if r["score"] is None} == {"hash"}
    done = [c for c in scored if c["state"] == "complete"]
    assert {c["param:embedding.backend"] for c in done} == {"full"}
    bases = [p for p in (tmp_path / "out/bases").iterdir() if p.is_dir()]
    assert len(bases) == len({c["param:training.learning_rate"] for c in done})
    assert summary["winner"]["valid_auc"] == max(r["auc"] for r in trained if r["auc"])


def test_mistakes_are_one_line(make_search: MakeSearch, tmp_path: Path) -> None:
    tuned = {"compact.finetune.epochs": {"int": [1, 2]}}
    for keys, message in (
        ({"space": METHODS | tuned}, "space.compact.finetune.epochs: candidates are scored before they are trained on"),
        ({"space": METHODS, "baselines": ["magic"]}, "baselines: 'magic' is not known; allowed: full, uniform,"),
        ({"space": METHODS, "mode": "pareto", "budget": [0.1, 0.2]}, "mode: pareto has one front"),
        ({"space": METHODS, "budget": [0.5, "0.5"]}, "0.5 is given twice"),
        ({"space": {"compact.method": {"choices": ["zip"]}}}, "unknown post-training method 'zip'"),
    ):
        with pytest.raises(UserError) as error:
            make_search(*TUNED, **keys)
        assert message in str(error.value)
        assert "\n" not in str(error.value)
    search = make_search("training.epochs=1", budget="60B", space=METHODS)
    with pytest.raises(UserError, match="fits in 60 bytes; the smallest that was drawn takes"):
        run_search(search, tmp_path / "small", 2, Silent(), quiet)
