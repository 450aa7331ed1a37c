"""Budgets of all that is served: met, nearly used, and the least that is said is the least that works."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_emb import load_artifact
from recsys_emb.config import parse_config
from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.errors import BudgetTooSmall, UserError
from recsys_emb.report import compare
from recsys_emb.serving import write_artifact
from recsys_emb.sizes import TotalBudget
from recsys_emb.training import run as running
from recsys_emb.training.progress import Silent
from recsys_emb.training.run_dir import RunDir, load_run


def config_for(data: Path, **sections: Any) -> Any:
    tree = {
        "data": {"path": str(data)},
        "model": {"name": "deepfm", "embedding_dim": 4, "hidden": [16]},
        "training": {"epochs": 1, "batch_size": 512, "precision": "fp32", "learning_rate": 0.01},
        "device": "cpu",
    }
    return parse_config({**tree, **sections})


def least_of(error: UserError) -> int:
    return int(re.findall(r"least it can reach is ([0-9,]+) bytes", str(error))[0].replace(",", ""))


@pytest.fixture(scope="module")
def full(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("total") / "full"
    running.train(config_for(prepared), out, Silent())
    return load_run(out)


def test_embeddings_get_what_vocabularies_and_network_leave(prepared: Path, full: RunDir, tmp_path: Path) -> None:
    total = full.report["served_bytes"] - full.report["serving_bytes"] // 2
    config = config_for(prepared, embedding={"backend": "qr", "budget": {"total": total}})
    report = running.train(config, tmp_path / "run", Silent())
    assert 0.97 * total < report["served_bytes"] <= total
    assert report["dense_bytes"] == full.report["dense_bytes"]
    assert report["budget"] == {"total": total}
    assert load_run(tmp_path / "run").config == config.at_state_of(config.data.open())
    row = compare([tmp_path / "run", full.path])
    assert {r["budget_bytes"] for r in row} == {total, None}


@pytest.mark.parametrize("hashed", [False, True])
def test_the_least_that_is_said_is_the_least_that_works(prepared: Path, tmp_path: Path, hashed: bool) -> None:
    if hashed:
        prepared = tmp_path / "hashed"
        prepare(make_source("synthetic", options={"rows": 800, "ids": 300, "seed": 3}), prepared, ids="hash64")

    def plan(total: int | str) -> Any:
        return running.check(config_for(prepared, embedding={"backend": "hash", "budget": {"total": total}}))

    message = r"^embedding.budget: hash cannot fit in 1,000 bytes with [0-9,]+ of vocabularies and [0-9,]+ of the net"
    with pytest.raises(BudgetTooSmall, match=message) as refused:
        plan("1kB")
    least = least_of(refused.value)
    plan(least)
    with pytest.raises(BudgetTooSmall):
        plan(least - 1)


@pytest.mark.parametrize("method", ["pq", "quantized_svd"])
def test_a_method_gets_what_raw_values_leave(full: RunDir, tmp_path: Path, method: str) -> None:
    beside = full.report["served_bytes"] - full.report["serving_bytes"]
    total = beside + full.report["full_bytes"] // 5
    report = write_artifact(full, tmp_path / "a", method, TotalBudget(total), evaluate=False)
    assert beside + 0.85 * (total - beside) < report["served_bytes"] <= total
    assert load_artifact(tmp_path / "a").manifest.served_bytes == report["served_bytes"]
    with pytest.raises(BudgetTooSmall, match=rf"--budget: {method} cannot fit in {beside:,} bytes with ") as refused:
        write_artifact(full, tmp_path / "b", method, TotalBudget(beside), evaluate=False)
    write_artifact(full, tmp_path / "b", method, TotalBudget(least_of(refused.value)), evaluate=False)


def test_beside_fingerprints_it_is_found_by_trying(full: RunDir, tmp_path: Path) -> None:
    """The most that fingerprints may take would leave nothing; what they do take depends on the rows."""
    network, most = full.report["dense_bytes"], 30_000
    report = write_artifact(
        full, tmp_path / "a", "pq", TotalBudget(network + most), evaluate=False, vocabulary="fingerprint"
    )
    files = sum(f.stat().st_size for f in (tmp_path / "a/fingerprints").iterdir())
    assert report["serving_bytes"] + files == report["served_bytes"] - network
    assert 0.6 * most < report["served_bytes"] - network <= most
    with pytest.raises(
        BudgetTooSmall, match=r"--budget: pq cannot fit in [0-9,]+ bytes with fingerprints and "
    ) as refused:
        write_artifact(full, tmp_path / "b", "pq", TotalBudget(network + 8_000), vocabulary="fingerprint")
    least = TotalBudget(least_of(refused.value))
    made = write_artifact(full, tmp_path / "b", "pq", least, evaluate=False, vocabulary="fingerprint")
    assert made["served_bytes"] <= least.bytes


def test_a_section_meets_it_too(prepared: Path, full: RunDir, tmp_path: Path) -> None:
    total = full.report["dense_bytes"] + 30_000
    section = {"method": "pq", "budget": {"total": total}, "vocabulary": "fingerprint"}
    report = running.train(config_for(prepared, compact=section), tmp_path / "run", Silent())
    made = write_artifact(load_run(tmp_path / "run"), tmp_path / "a", evaluate=False)
    assert made["serving_bytes"] == report["serving_bytes"]
    assert made["served_bytes"] <= report["served_bytes"] <= total


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"embedding": {"budget": {"total": 0.1}}}, "embedding.budget: total: 0.1 is not a size; allowed: bytes such"),
        ({"embedding": {"budget": {"of": 1}}}, "embedding.budget: {'of': 1} is no budget; allowed: a ratio above 0"),
        ({"compact": {"method": "pq", "budget": {"total": "x"}}}, "compact.budget: total: 'x' is not a size|'x' is no"),
    ],
)
def test_mistakes_name_the_key(prepared: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_for(prepared, **sections)


def test_what_a_fit_costs_is_found_out_once(full: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys_emb.serving import compact

    asked: list[int] = []
    real: Callable[..., Any] = compact.error_costs
    monkeypatch.setattr(compact, "error_costs", lambda *given: asked.append(1) or real(*given))
    total = TotalBudget(full.report["dense_bytes"] + 30_000)
    write_artifact(full, tmp_path / "a", "pq", total, evaluate=False, vocabulary="fingerprint")
    assert asked == [1]
