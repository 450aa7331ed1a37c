"""Artifacts with fingerprints of their vocabularies: the same predictions, fewer bytes, no values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys_emb import cli, load_artifact
from recsys_emb.data.encode import prepare
from recsys_emb.data.like import open_reference
from recsys_emb.data.options import make_source
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError
from recsys_emb.report import artifact_table, compare
from recsys_emb.serving import evaluate_artifact, evaluate_input, predict_file, write_artifact
from recsys_emb.serving.exports import export_artifact, exporter
from recsys_emb.training.run_dir import RunDir
from tests.serving.conftest import train_run

RunOf = Callable[[str], RunDir]
USERS = {"label": "clicked", "categorical": ["user", "item"], "user": "user", "split": {"column": "part"}}


def raw_rows(data: Path) -> pl.DataFrame:
    """Those that the dataset was made of, whose values training has seen or not."""
    manifest = open_dataset(data).manifest
    blocks = make_source(manifest["source"], options=manifest["options"]).inputs()
    return pl.concat([block.frame for block in blocks])


@pytest.mark.parametrize(
    ("backend", "method", "budget"),
    [
        ("full", None, None),
        ("full", "pq", 0.05),
        ("full", "drop_unseen", 0.7),
        ("full", "quantized_svd", 0.3),
        ("unified", None, None),
        ("optembed", None, None),
    ],
)
def test_known_values_predict_as_with_the_exact_vocabulary(
    run_of: RunOf, tmp_path: Path, prepared: Path, backend: str, method: str | None, budget: float | None
) -> None:
    run = run_of(backend)
    reports = {
        form: write_artifact(run, tmp_path / form, method, budget, vocabulary=form, fingerprint_bits=bits)
        for form, bits in (("exact", None), ("fingerprint", 16))
    }
    exact, small = (load_artifact(tmp_path / form) for form in reports)
    rows = raw_rows(prepared)
    ids = exact.encoder.encode(rows).ids
    seen = rows.filter(pl.Series((ids != 0).all(dim=1).numpy()))
    assert 100 < len(seen) < len(rows)
    assert (small.logits(seen) == exact.logits(seen)).all()
    assert (small.logits(rows) == exact.logits(rows)).mean() > 0.999  # 1 in 65,536 unknown values is taken for another
    one, other = (load_artifact(tmp_path / form) for form in reports)
    assert evaluate_artifact(other, "valid")["auc"] == evaluate_artifact(one, "valid")["auc"]
    assert reports["fingerprint"]["auc"] == reports["exact"]["auc"]


def test_bytes_are_those_of_the_files_and_no_value_is_in_them(run_of: RunOf, tmp_path: Path, prepared: Path) -> None:
    report = write_artifact(run_of("full"), tmp_path / "a", "pq", 0.05, vocabulary="fingerprint", evaluate=False)
    files = list((tmp_path / "a/fingerprints").iterdir())
    assert {f.stem for f in files} == set(open_dataset(prepared).schema.vocabularies)
    assert report["vocabulary_bytes"] == sum(f.stat().st_size for f in files)
    assert not (tmp_path / "a/vocabularies").exists()
    manifest = json.loads((tmp_path / "a/artifact.json").read_text())
    parts = ("serving_bytes", "vocabulary_bytes", "dense_bytes")
    assert manifest["served_bytes"] == report["served_bytes"] == sum(report[part] for part in parts)
    assert manifest["vocabulary"] == "fingerprint"
    assert 0 < report["taken_for_known"] < 1.05 / 256  # less where a vocabulary's values all have the row of id 0
    assert artifact_table(report, tmp_path).row_count > 0
    exact = write_artifact(run_of("full"), tmp_path / "e", "pq", 0.05, evaluate=False)
    assert exact["taken_for_known"] is None


def test_a_comparison_tells_the_forms_apart(run_of: RunOf, tmp_path: Path) -> None:
    for form in ("exact", "fingerprint"):
        write_artifact(run_of("full"), tmp_path / form, "pq", 0.05, vocabulary=form)
    rows = compare([tmp_path / "exact", tmp_path / "fingerprint"])
    told = {row["runs"][0]: row["settings"] for row in rows}
    assert "vocabulary=fingerprint" in told["fingerprint"]
    assert "fingerprint" not in told["exact"]


@pytest.mark.parametrize(
    ("form", "bits", "message"),
    [
        ("hashes", None, "--vocabulary hashes: no such form; allowed: exact, fingerprint"),
        (None, 8, "--fingerprint-bits: belongs to --vocabulary fingerprint"),
        ("fingerprint", 0, "--fingerprint-bits 0: allowed are 1 to 24"),
        ("fingerprint", 25, "--fingerprint-bits 25: allowed are 1 to 24"),
    ],
)
def test_mistakes_in_one_line(run_of: RunOf, tmp_path: Path, form: str | None, bits: int | None, message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        write_artifact(run_of("full"), tmp_path / "a", vocabulary=form, fingerprint_bits=bits)
    assert not (tmp_path / "a").exists()


def test_what_needs_raw_values_says_so(run_of: RunOf, tmp_path: Path) -> None:
    write_artifact(run_of("full"), tmp_path / "a", vocabulary="fingerprint", evaluate=False)
    with pytest.raises(UserError, match=r"--like .*a: holds fingerprints of values, not the values \(compact --vocab"):
        open_reference(tmp_path / "a")


def test_hashes_have_no_vocabulary(tmp_path: Path) -> None:
    prepare(make_source("synthetic", options={"rows": 600, "ids": 200}), tmp_path / "data", ids="hash64")
    run = train_run(tmp_path / "data", tmp_path / "run", "hash", budget="20kB")
    with pytest.raises(UserError, match=r"--vocabulary fingerprint: ids are hashes .*, no vocabulary"):
        write_artifact(run, tmp_path / "a", vocabulary="fingerprint", evaluate=False)


def test_damaged_fingerprints_are_refused(run_of: RunOf, tmp_path: Path) -> None:
    write_artifact(run_of("full"), tmp_path / "a", vocabulary="fingerprint", evaluate=False)
    file = tmp_path / "a/fingerprints/C3.safetensors"
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"C3.safetensors: damaged, its checksum is not that of artifact.json"):
        load_artifact(tmp_path / "a")
    file.unlink()
    with pytest.raises(UserError, match=r"C3.safetensors: missing; compact the run again"):
        load_artifact(tmp_path / "a")


@pytest.mark.parametrize("to", ["torch", "torchrec"])
def test_exports_are_compared_on_the_runs_own_rows(run_of: RunOf, tmp_path: Path, to: str) -> None:
    write_artifact(run_of("full"), tmp_path / "a", vocabulary="fingerprint", evaluate=False)
    done = export_artifact(load_artifact(tmp_path / "a", "cpu"), exporter(to), tmp_path / "out.pt2")
    assert done["compared_on"].startswith("rows of ")


@pytest.fixture(scope="module")
def of_users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``run``, and ``new.csv`` with as many rows of users and items that training has not seen."""
    folder = tmp_path_factory.mktemp("users")
    for name, users, items in (("old", 30, 20), ("new", 60, 40)):
        random = np.random.default_rng(users)
        item = random.integers(0, items, 1500)
        frame = {
            "clicked": (random.random(1500) < 0.2 + 0.03 * (item % 20)).astype(int),
            "user": [f"u{x}" for x in random.integers(0, users, 1500)],
            "item": [f"i{x}" for x in item],
            "part": random.choice(["train", "valid", "test"], 1500),
        }
        pl.DataFrame(frame).write_csv(folder / f"{name}.csv")
    prepare(make_source("table", folder / "old.csv", options=USERS), folder / "data")
    train_run(folder / "data", folder / "run")
    return folder


def test_figures_of_raw_rows_are_those_of_the_exact_vocabulary(of_users: Path, tmp_path: Path) -> None:
    run = RunDir.open(of_users / "run")
    for form in ("exact", "fingerprint"):
        bits = 20 if form == "fingerprint" else None
        write_artifact(run, tmp_path / form, evaluate=False, vocabulary=form, fingerprint_bits=bits)
    one, two = (
        {
            k: v
            for k, v in evaluate_input(load_artifact(tmp_path / form), of_users / "new.csv").items()
            if k != "artifact"
        }
        for form in ("exact", "fingerprint")
    )
    assert one == two
    assert one["unknown_share"]["user"] == pytest.approx(0.5, abs=0.05)
    assert 0 < one["gauc"] < 1
    shares = predict_file(load_artifact(tmp_path / "fingerprint"), of_users / "new.csv", tmp_path / "p")
    assert shares["unknown_share"] == one["unknown_share"]


def test_users_who_share_a_row_are_told_apart_and_unknown_ones_are_not(of_users: Path, tmp_path: Path) -> None:
    run = RunDir.open(of_users / "run")
    options = {"levels": {"user": 0}}
    for form in ("exact", "fingerprint"):
        write_artifact(run, tmp_path / form, "pq", 0.4, options, evaluate=False, vocabulary=form)
    exact, small = (load_artifact(tmp_path / form) for form in ("exact", "fingerprint"))
    assert small.encoder.tells_unknown == ["item"]
    old, new = of_users / "old.csv", of_users / "new.csv"
    one, two = (evaluate_input(artifact, old) for artifact in (exact, small))
    assert two["gauc"] == pytest.approx(one["gauc"], abs=1e-12)
    assert (two["users"], two["auc"]) == (one["users"], one["auc"])
    assert evaluate_input(small, new)["unknown_share"].keys() == {"item"}
    assert evaluate_input(small, new, by=["item"])["by"].keys() == {"item"}
    with pytest.raises(UserError, match=r"--by user: .* has no fingerprints of some values that training has seen"):
        evaluate_input(small, new, by=["user"])


def test_the_command_and_the_section_make_the_same(
    run_of: RunOf, tmp_path: Path, prepared: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--method", "pq", "--budget", "0.05", "--vocabulary", "fingerprint", "--fingerprint-bits", "6"]
    out = str(tmp_path / "a")
    monkeypatch.setattr("sys.argv", ["recsys-emb", "compact", str(run_of("full").path), "--out", out, *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    assert "taken for known ones" in capsys.readouterr().out
    section = {"method": "pq", "budget": 0.05, "vocabulary": "fingerprint", "fingerprint_bits": 6}
    run = train_run(prepared, tmp_path / "run", compact=section)
    made = write_artifact(run, tmp_path / "b", evaluate=False)
    for file in sorted((tmp_path / "a/fingerprints").iterdir()):
        assert file.read_bytes() == (tmp_path / "b/fingerprints" / file.name).read_bytes()
    assert 1.05 / 256 < made["taken_for_known"] < 1.05 / 64
