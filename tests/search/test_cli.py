"""`recsys-emb search` as a user types it."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import pytest

from recsys_emb import cli
from recsys_emb.config import load_config
from tests.search.conftest import RATE, WIDTHS, search_file


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple:
    monkeypatch.setattr(sys, "argv", ["recsys-emb", "search", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out = capsys.readouterr()
    return left.value.code, out.out, out.err


def test_a_search_from_start_to_a_config_to_train(capsys, monkeypatch, prepared: Path, tmp_path: Path) -> None:
    path, out = search_file(prepared, tmp_path, space=RATE, baselines=["uniform"]), tmp_path / "out"
    given = (str(path), "--trials", "1", "--out", str(out), "--set", "training.epochs=1")
    code, _, err = command(capsys, monkeypatch, *given, "--budget", "30KB")
    assert code == 0
    assert err.splitlines()[0].startswith("uniform: valid AUC 0.")
    assert err.splitlines()[1].startswith("trial 0: ")

    code, text, err = command(capsys, monkeypatch, *given, "--budget", "20KB", "--resume")
    assert code == 2
    assert err.count("\n") == 1
    assert "(its budget_bytes differs)" in err
    code, text, err = command(capsys, monkeypatch, *given, "--budget", "30KB", "--resume", "--json")
    assert (code, err) == (0, "")
    summary = json.loads(text)
    assert summary["budget_bytes"] == 30_000
    assert load_config(out / "best.yaml").training.epochs == 1

    code, text, _ = command(capsys, monkeypatch, *given, "--budget", "30KB", "--resume")
    assert code == 0
    assert f"{summary['winner']['test']['auc']:.5f}" in text
    assert f"recsys-emb train {out}/best.yaml" in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "some/file"), "some/file: No space left on device"),
        (ChildProcessError(errno.ECHILD, "a process was killed"), "OUT: a process was killed"),
    ],
)
def test_what_the_machine_did_is_one_line_that_says_how_to_go_on(
    capsys, monkeypatch, prepared: Path, tmp_path: Path, error: OSError, said: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("recsys_emb.search.run.run_search", fail)
    path, out = search_file(prepared, tmp_path, space=RATE), tmp_path / "out"
    code, _, err = command(capsys, monkeypatch, str(path), "--trials", "7", "--out", str(out))
    again = f"continue with `recsys-emb search {path} --trials 7 --out {out} --resume` and the same options"
    assert err == f"recsys-emb: {said.replace('OUT', str(out))}; {again}\n"
    assert code == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml", "--trials", "1"], "search none.yaml: No such file"),
        (["SEARCH"], "Missing option '--trials'"),
        (["SEARCH", "--trials", "0"], "--trials"),
        (["SEARCH", "--trials", "1", "--resume"], "--resume: name the search to continue with --out DIR"),
        (["SEARCH", "--trials", "1", "--resume", "--out", "TMP/none"], "holds no search to continue"),
        (["SEARCH", "--trials", "1", "--budget", "lots"], "'lots' is not a size"),
        (["SEARCH", "--trials", "1", "--out", "TMP"], "exists already"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    capsys, monkeypatch, prepared: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    path = search_file(prepared, tmp_path, space=RATE)
    filled = [a.replace("SEARCH", str(path)).replace("TMP", str(tmp_path)) for a in arguments]
    code, _, err = command(capsys, monkeypatch, *filled)
    assert code == 2
    assert err.startswith("recsys-emb: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_search_whose_trials_all_failed_says_so(capsys, monkeypatch, prepared: Path, tmp_path: Path) -> None:
    space = {"training.learning_rate": {"choices": [1e30, 2e30]}}
    path = search_file(prepared, tmp_path, space=space, baselines=["uniform"])
    code, text, err = command(capsys, monkeypatch, str(path), "--trials", "2", "--out", str(tmp_path / "out"))
    assert code == 2
    assert "no trial beat" not in text
    assert "every trial failed, the first with: " in err.splitlines()[-1]
    assert "diverged" in err.splitlines()[-1]


def test_scores_and_trained_aucs_are_told_apart(capsys, monkeypatch, prepared: Path, tmp_path: Path) -> None:
    own = {"set": ["embedding.backend=field_dim", "training.epochs=1"], "scoring": "supernet", "retrain": 1}
    path = search_file(prepared, tmp_path, space=WIDTHS, baselines=["uniform_widths"], **own)
    out = tmp_path / "out"
    code, text, err = command(capsys, monkeypatch, str(path), "--trials", "3", "--budget", "0.6", "--out", str(out))
    assert code == 0
    told = [line for line in err.splitlines() if ": infeasible" not in line]
    assert [line.split(" 0.")[0] for line in told[:2]] == ["uniform_widths: valid AUC", "uniform_widths: score"]
    assert [": score 0." in line for line in told[2:]] == [True] * 3 + [False]
    assert ": valid AUC 0." in told[-1]
    assert f"{out}/candidates.parquet has them all" in text
    assert "too few candidates were carried out" in text
