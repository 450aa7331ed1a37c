"""Every benchmark runs at toy size and writes its result and its table. Nothing is said about times."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import backends, data, lookup, predict, robustness, scale, training
from benchmarks._peer import PYTHON

SMALL = ["--rounds", "2", "--batch-size", "64"]
needs_peers = pytest.mark.skipif(not PYTHON.is_file(), reason="no .venv-peers; `make peers` installs it")


def run(main: Callable[[list[str]], None], out: Path, *arguments: str) -> tuple[dict[str, Any], str]:
    """The result and the table."""
    main([*arguments, "--out", str(out)])
    result = json.loads(out.read_text())
    text = out.with_suffix(".md").read_text()
    assert " ".join(arguments) in result["command"]
    assert str(out) not in result["command"]
    assert result["command"] in text
    assert result["machine"]["processor"] in text
    return result, text


def ordered(spread: dict[str, float]) -> bool:
    return 0 < spread["min"] <= spread["median"] <= spread["max"]


def test_training_times_every_size_with_every_optimizer(tmp_path: Path) -> None:
    arguments = ["--ids", "2000", "5000", "--steps", "2", *SMALL]
    result, text = run(training.main, tmp_path / "t.json", *arguments)
    assert [(r["ids"], r["optimizer"]) for r in result["rows"]] == [
        (2000, "adam"),
        (2000, "rowwise_adagrad"),
        (5000, "adam"),
        (5000, "rowwise_adagrad"),
    ]
    assert all(ordered(r["step_ms"]) for r in result["rows"])
    assert [r["ratio_to_first"] for r in result["rows"][:2]] == [1, 1]
    assert "| 5,000 | rowwise_adagrad |" in text


def test_a_profile_names_stages_and_operations(capsys: pytest.CaptureFixture[str]) -> None:
    training.main(["--model", "din", "--steps", "2", "--profile", *SMALL])
    out = capsys.readouterr().out
    for stage in ("data", "embedding", "dense forward", "backward", "update"):
        assert f"| {stage} |" in out
    assert "| `aten::addmm` |" in out


@pytest.mark.stress
@needs_peers
@pytest.mark.parametrize(("model", "peer"), [("deepfm", "fuxictr"), ("din", "fuxictr"), ("din", "deepctr")])
def test_a_peer_trains_the_same_rows(model: str, peer: str, tmp_path: Path) -> None:
    arguments = ["--model", model, "--ids", "2000", "--steps", "2", "--peer", peer, *SMALL]
    result, text = run(training.main, tmp_path / "t.json", *arguments)
    assert [(r["peer"], r["tuned"]) for r in result["peers"]] == [(peer, False), (peer, True)]
    assert all(r["speedup"] == r["step_ms"]["median"] / r["our_step_ms"]["median"] for r in result["peers"])
    assert f"| {peer} | tuned |" in text
    if model == "deepfm":  # 4 layers of 400 on equal inputs, whatever the factorization machine does
        assert all(r["gflop"] == pytest.approx(r["our_gflop"], rel=0.02) for r in result["peers"])


def test_lookups_of_serving_forms_are_compared_with_full(tmp_path: Path) -> None:
    arguments = ["--methods", "hash", "pq", "optembed", "--ids", "20000", "--lookups", "1", *SMALL]
    result, text = run(lookup.main, tmp_path / "l.json", *arguments)
    assert [r["method"] for r in result["rows"]] == ["full", "hash", "pq", "optembed"]
    assert result["rows"][0]["ratio"] == result["rows"][0]["share"] == 1
    assert all(ordered(r["lookup_ms"]) for r in result["rows"])
    assert all(r["share"] <= 0.1 for r in result["rows"][1:])
    assert "| pq | " in text


def test_backends_are_compared_with_full(tmp_path: Path) -> None:
    arguments = ["--backends", "hash", "optembed", "--ids", "20000", "--memory-ids", "5000", "--steps", "1"]
    result, text = run(backends.main, tmp_path / "b.json", *arguments, "--requests", "3", *SMALL)
    assert [r["backend"] for r in result["rows"]] == ["full", "hash", "optembed"]
    assert [r["goal"] for r in result["rows"]] == [1.3, 1.3, 1.5]
    assert result["rows"][0]["ratio"] == 1
    for row in result["rows"]:
        assert ordered(row["step_ms"])
        assert 0 < row["request_ms"]["p50"] <= row["request_ms"]["p99"]
        assert row["memory"]["planned_bytes"] > 0
    full, hashed, _ = (r["memory"]["planned_bytes"] for r in result["rows"])
    assert hashed < full
    assert "| hash |" in text


def test_a_method_that_cannot_reach_the_budget_is_measured_at_its_least(tmp_path: Path) -> None:
    arguments = ["--backends", "low_rank", "--ids", "2000", "--memory-ids", "0", "--budget", "0.0001", "--steps", "1"]
    result, text = run(backends.main, tmp_path / "b.json", *arguments, "--requests", "3", *SMALL)
    full, least = result["rows"]
    assert full["share"] == 1
    assert 0.0001 < least["share"] < 0.2
    assert f"| low_rank | {least['share']:.3f} |" in text


def test_preparation_counts_rows(tmp_path: Path) -> None:
    result, text = run(data.main, tmp_path / "d.json", "--rows", "2000", "--ids", "1000", "--rounds", "1")
    (row,) = result["rows"]
    assert row["rows_per_second"] == 2000 / row["seconds"]["median"]
    assert result["peak_rss_bytes"]["max"] > 0
    assert "| recsys_emb |" in text


def test_predictions_of_prepared_rows_raw_rows_and_requests(tmp_path: Path) -> None:
    arguments = ["--rows", "2000", "--ids", "1000", "--requests", "3", *SMALL, "--backends", "hash"]
    result, text = run(predict.main, tmp_path / "p.json", *arguments)
    assert [r["way"] for r in result["measured"]] == ["prepared rows", "raw file"]
    assert all(ordered(r["row_us"]) for r in result["measured"])
    assert 0 < result["request_ms"]["p50"] <= result["request_ms"]["p99"]
    assert result["request_ms_at_a_tenth"]["hash"]["p50"] > 0
    assert "| raw file |" in text
    assert "| hash |" in text


def test_requests_of_clients_over_http(tmp_path: Path) -> None:
    serve = pytest.importorskip("benchmarks.serve")
    sizes = ["--rows", "2000", "--ids", "1000", "--clients", "1", "3", "--seconds", "0.2", *SMALL]
    result, text = run(serve.main, tmp_path / "h.json", *sizes)
    kinds = ["application/vnd.apache.arrow.stream", "application/json"]
    assert [(r["body"], r["clients"]) for r in result["measured"]] == [(kind, n) for kind in kinds for n in (1, 3)]
    assert all(0 < r["p50_ms"] <= r["p99_ms"] and r["requests_per_second"] > 0 for r in result["measured"])
    assert "| application/json | 3 |" in text


def test_memory_of_a_run_and_an_auc(tmp_path: Path) -> None:
    arguments = ["--ids", "2000", "--optimizers", "adam", "--steps", "2", "--auc-rows", "1000", *SMALL]
    result, text = run(scale.main, tmp_path / "s.json", *arguments)
    (row,) = result["rows"]
    assert row["training_bytes"] > 2000 * 17 * 4 * 3  # weights, two moments
    assert ordered(result["auc_seconds"])
    assert "AUC of 1,000 predictions" in text


def test_survived_kills_damages_and_processes(tmp_path: Path) -> None:
    sizes = ["--kills", "1", "--killed", "full", "--cases", "40", "--processes", "2", "--backends", "hash"]
    result, text = run(robustness.main, tmp_path / "r.json", *sizes)
    (killed,) = result["kills"]
    assert killed["backend"] == "full"
    assert sum(killed["where"].values()) == killed["kills"] >= killed["runs"] == 1
    assert sum(r["cases"] for r in result["damaged"]) >= 40
    assert all(r["read"] + r["refused"] == r["cases"] > 0 for r in result["damaged"])
    (compared,) = result["processes"]
    assert compared["backend"] == "hash"
    assert 0 <= compared["differences"]["2"] < 1e-4
    assert "| backend | 2 processes against 1 |" in text
