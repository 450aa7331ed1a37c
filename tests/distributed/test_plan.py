"""What a run would take: against figures by hand; test_training.py compares with runs of two processes."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from recsys_emb import cli
from recsys_emb.config import RunConfig, parse_config
from recsys_emb.data.store import open_dataset
from recsys_emb.distributed.load import Load, TableLoad
from recsys_emb.distributed.machine import MACHINES, Machine
from recsys_emb.distributed.plan import plan_run
from recsys_emb.distributed.workload import of_dataset, of_fields


def config(data: Path, **embedding: Any) -> RunConfig:
    return parse_config(
        {
            "data": {"path": str(data)},
            "model": {"name": "dcnv2", "embedding_dim": 16, "hidden": [32]},
            "embedding": embedding,
            "training": {"batch_size": 1024},
        }
    )


def small(model: str, **keys: Any) -> RunConfig:
    training = {"batch_size": 16_384}
    return parse_config({"data": {"path": "none"}, "model": {"name": model}, "training": training, **keys})


LOAD = Load(
    # Adam: two moments of 4 floats and a step; two lookups of a batch's row, half of them different.
    tables=[TableLoad("big", rows=101, dim=4, state_bytes=36, looked=2.0, distinct=1.0)],
    batch=20,
    copied_bytes=1000,
    copied_state_bytes=2000,
    averaged_bytes=900,
    activation_bytes=50.0,
    flops=1e6,
)


def test_memory_by_hand() -> None:
    assert LOAD.per_device(2) == {
        "table_weights": 51 * 16,
        "table_optimizer": 51 * 36,
        "other_weights": 1900,
        "other_optimizer": 2000,
        "activations": 50 * 10 + 2 * (20 + 10) * 16,  # 10 rows of the batch: 20 vectors, 10 different rows
        "total": 51 * 52 + 3900 + 500 + 960,
    }


def test_bytes_sent_by_hand() -> None:
    # 5 rows of the batch ask for 5 different rows, three quarters of them elsewhere.
    sent = LOAD.sent(4)
    assert sent == {"ids": 30, "rows": 60, "gradients": 60, "other_gradients": 1350, "total": 1500}
    assert LOAD.sent(1)["total"] == 0


def test_no_more_different_rows_than_there_are() -> None:
    assert LOAD.tables[0].asked(1000) == 101


def test_times_by_hand() -> None:
    machine = Machine(memory=1e3, within_host=100.0, between_hosts=10.0, flops=1e6, per_host=4)
    seconds = LOAD.seconds(4, machine)
    assert seconds["exchange"] == pytest.approx(1.5)
    assert seconds["other_gradients"] == pytest.approx(13.5)
    assert seconds["dense"] == pytest.approx(5 * (3 + 0.1))
    assert seconds["tables"] == pytest.approx((2 * 5 * 52 + 2 * 10 * 16) / 1e3)
    assert LOAD.seconds(8, machine)["exchange"] > seconds["exchange"]  # over the slower network


def test_a_step_costs_something_however_small_it_is() -> None:
    machine = Machine(1e3, 100.0, 10.0, 1e6, launch=0.5, latency_within_host=2.0, latency_between_hosts=7.0, per_host=4)
    load = replace(LOAD, operations=10)
    alone, four, eight = (load.seconds(devices, machine) for devices in (1, 4, 8))
    assert alone["starting_operations"] == four["starting_operations"] == 0.5 * (2 * 10 + 15)  # of one table
    assert alone["starting_collectives"] == 0
    assert four["starting_collectives"] == 2.0 * (3 + 5)
    assert eight["starting_collectives"] == 7.0 * (3 + 5)


def test_before_there_is_data() -> None:
    fields = {"user": 200_000_000, "item": 20_000_000, "city": 5000}
    made = plan_run(small("dlrm"), of_fields(fields, dense=13), devices=4, memory=24 * 10**9)
    (table,) = made["tables"]
    assert (table["rows"], table["dim"]) == (220_005_000, 16)
    assert made["full_bytes"] == 220_005_000 * 64
    per_device = made["bytes_per_device"]
    assert per_device["table_weights"] == 55_001_250 * 64
    assert per_device["table_optimizer"] == 55_001_250 * (128 + 4)  # two moments, and the last step
    assert made["fits"]
    # Three ids a row, which hardly repeat but for the cities: 4,096 draws of 5,000 meet 5,000 (1 - e^-0.8192) of them.
    assert made["sent_per_step"]["ids"] == pytest.approx(8 * 3 / 4 * (2 * 4096 + 2796), rel=0.02)
    assert "every row has one id of each of 3 fields and 13 dense features" in made["assumptions"]


@pytest.mark.parametrize("device", ["cpu", "auto"])
@pytest.mark.parametrize("devices", [1, 4, 64])
def test_no_plan_promises_what_no_machine_does(device: str, devices: int) -> None:
    """The least that a step takes is its start: some 40 operations of 10 microseconds."""
    made = plan_run(small("lr", device=device), of_fields({"a": 100}), devices, 80 * 10**9)
    assert made["seconds"]["starting_operations"] > 0.3e-3
    assert made["rows_per_second"] < 16_384 / 0.3e-3


def test_every_assumption_is_a_line(prepared: Path) -> None:
    own = plan_run(config(prepared), of_dataset(open_dataset(prepared)), devices=8, memory=10**9)["assumptions"]
    given = plan_run(config(prepared), of_dataset(open_dataset(prepared), {"": 10}), devices=16, memory=10**9)[
        "assumptions"
    ]
    alone = plan_run(config(prepared), of_dataset(open_dataset(prepared)), devices=1, memory=10**9)["assumptions"]
    assert "ids of a batch are those of tiny's training split" in own
    assert any(line.startswith("--ids-per-field: vocabularies are planned with so many ids") for line in given)
    assert any(line.startswith("ids of a batch are random") for line in given)
    assert any("within a host" in line for line in own)
    assert any("between hosts" in line for line in given)
    assert not any("network" in line for line in alone)
    assert all("\n" not in line for line in (*own, *given, *alone))


def test_the_least_devices_are_the_least() -> None:
    for memory in (6000, 7000, 9000):
        least = LOAD.least_devices(memory)
        assert least is not None
        assert LOAD.per_device(least)["total"] <= 0.9 * memory
        assert least == 1 or LOAD.per_device(least - 1)["total"] > 0.9 * memory
    assert LOAD.least_devices(3000) is None


def test_criteo_1tb_without_its_tables(prepared: Path) -> None:
    made = plan_run(
        config(prepared), of_dataset(open_dataset(prepared), {"": 34_000_000, "C1": 10}), devices=8, memory=80 * 10**9
    )
    ids = 25 * 34_000_000 + 10
    (table,) = made["tables"]
    assert (table["rows"], table["dim"]) == (ids, 16)
    assert made["ids"] == ids
    assert made["full_bytes"] == made["serving_bytes"] == ids * 64
    assert table["bytes_per_device"] == -(-ids // 8) * (64 + 128 + 4)
    assert made["fits"]
    assert made["least_devices"] == 3  # 167 GB over 72 usable ones
    # Random ids of 34 million hardly repeat: 25 fields of 128 rows, and 10 ids of the small one.
    assert made["sent_per_step"]["ids"] == pytest.approx(8 * 7 / 8 * (25 * 128 + 10), rel=0.01)
    assert made["slowest"] == max(made["seconds"], key=made["seconds"].get)
    by_name = {b["backend"]: b for b in made["backends"]}
    assert by_name["hash"]["least_devices"] == 1
    assert by_name["full"]["bytes_per_device"] == made["bytes_per_device"]["total"]
    # Too much for a plan: a pointer of each id and chunk, and a network that computes all vectors.
    assert "plan makes at most 268.4 MB" in by_name["cce"]["problem"]
    assert "plan tries at most 4,194,304" in by_name["dhe"]["problem"]


def test_a_budget_that_a_backend_cannot_reach_is_said(prepared: Path) -> None:
    made = plan_run(
        config(prepared, backend="hash", budget=0.1), of_dataset(open_dataset(prepared)), devices=2, memory=10**9
    )
    by_name = {b["backend"]: b for b in made["backends"]}
    assert "full cannot fit" in by_name["full"]["problem"]
    assert by_name["hash"]["serving_bytes"] == made["serving_bytes"] <= 0.1 * made["full_bytes"]


def test_faster_networks_are_for_one_host() -> None:
    cuda = MACHINES["cuda"]
    assert cuda.network(8) == cuda.within_host > cuda.network(9) == cuda.between_hosts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ids-per-field", "C99=5"], "--ids-per-field: no vocabulary 'C99'; allowed: C1, C2"),
        (["--ids-per-field", "C1=0"], "--ids-per-field: 'C1=0'; expected N or VOCABULARY=N with N of 1 or more"),
        (["--device-memory", "lots"], "--device-memory: 'lots' is not a size; allowed: bytes such as 80000000000 or"),
        (["--set", "training.embedding_optimizer=dense_adam"], "training.embedding_optimizer: dense_adam keeps whole"),
    ],
)
def test_mistakes_end_in_one_line(
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"data": {"path": str(prepared)}, "model": {"name": "fm"}}))
    monkeypatch.setattr(sys, "argv", ["recsys-emb", "plan", str(file), *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[Any, str, str]:
    """Exit code, stdout and stderr of ``recsys-emb plan ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["recsys-emb", "plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr()
    return ended.value.code, out.out, out.err


def test_the_command_before_there_is_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--model", "deepfm", "--fields", "user=2M, item=2e5,city=5k", "--fields", "day=1_000", "--dense", "13")
    given += ("--batch-size", "512", "--world-size", "4", "--device-memory", "24GB", "--set", "embedding.budget=1MB")
    given += ("--set", "embedding.backend=hash")
    code, text, _ = planned(monkeypatch, capsys, *given)
    assert code == 0
    words = " ".join(text.split())
    assert "deepfm with hash embeddings, 2,206,000 ids: fits on 4 devices of 24.0 GB; the least is 1" in words
    assert "A step of 512 rows" in words
    assert "Other backends, within the run's budget of 1.0 MB, with their default options" in words
    assert "Assumed: - every row has one id of each of 4 fields and 13 dense features" in words
    code, text, _ = planned(monkeypatch, capsys, *given, "--json")
    assert code == 0
    assert json.loads(text)["budget_bytes"] == 1_000_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing argument 'CONFIG': a run's YAML file; only --model NAME --fields NAME=N,... goes without"),
        (["--model", "fm"], "Missing argument 'CONFIG'"),
        (["--model", "fmm", "--fields", "a=3"], "did you mean 'fm'"),
        (["--model", "fm", "--fields", "a=lots"], "--fields: 'a=lots'; expected NAME=N with N of 1 or more"),
        (["--model", "fm", "--fields", "a=3,a=4"], "expected NAME=N,... with each name once"),
        (["--model", "fm", "--fields", "3"], "expected NAME=N,... with each name once"),
        (["--model", "fm", "--fields", "a/b=3"], "--fields: vocabulary 'a/b': the name must be usable as a file name"),
        (["--model", "fm", "--fields", "a=3", "--ids-per-field", "4"], "--ids-per-field: --fields says already"),
        (["--model", "fm", "--dense", "4"], "--dense: belongs to --fields"),
        (["--model", "fm", "--fields", "a=3", "--set", "training.epochs=0"], "training.epochs"),
    ],
)
def test_mistakes_before_there_is_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    code, _, error = planned(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_the_command(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"data": {"path": str(prepared)}, "model": {"name": "fm"}}))
    command = ["recsys-emb", "plan", str(file), "--world-size", "2", "--device-memory", "1MB"]
    for arguments in (command, [*command, "--json"]):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
    text, _, made = capsys.readouterr().out.rstrip().rpartition("\n")
    assert json.loads(made)["devices"] == 2
    assert "fits on" in " ".join(text.split()) or "DOES NOT FIT on" in " ".join(text.split())
