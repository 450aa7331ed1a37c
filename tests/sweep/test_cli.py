"""`recsys-emb sweep` as a user types it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from recsys_emb import cli
from recsys_emb.config import RunConfig, dump_config

Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def typed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny: RunConfig
) -> Typed:
    """Runs ``recsys-emb sweep`` in a folder with ``run.yaml``; gives its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(dump_config(tiny))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["recsys-emb", "sweep", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return left.value.code, *capsys.readouterr()  # type: ignore[return-value]

    return run


def test_several_values_follow_one_option(typed: Typed, tmp_path: Path) -> None:
    arguments = (
        "run.yaml",
        "--budgets",
        "0.5",
        "0.1",
        "--methods",
        "pq",
        "drop_unseen",
        "--seeds",
        "1",
        "--out",
        "out",
    )
    code, out, err = typed(*arguments, "--json")
    assert (code, err) == (0, "")
    cells = {(point["method"], point["budget"]) for point in json.loads(out)["points"]}
    assert cells == {("full", None), ("drop_unseen", None)} | {
        (m, b) for m in ("pq", "drop_unseen") for b in (0.5, 0.1)
    }
    for file in ("sweep-1.json", "sweep.md", "sweep.csv", "sweep.png", "report.html"):
        assert (tmp_path / "out" / file).is_file()
    assert not (tmp_path / "out" / "sweep-2.json").exists()

    code, out, err = typed(
        "--budgets", "0.5", "--budgets=0.1", *arguments[4:], "run.yaml"
    )  # the same, written otherwise
    assert code == 0
    assert err == ""  # nothing was made anew
    assert "drop_unseen" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run.yaml", "--budgets", "0.5", "20MB"), "--budgets 20MB: not a number; allowed: ratios to the full tables"),
        (("run.yaml", "--budgets", "1.5"), "--budgets 1.5: allowed: ratios to the full tables above 0 and up to 1"),
        (("run.yaml", "--budgets", "nan"), "--budgets nan: allowed: ratios"),
        (("run.yaml", "--methods", "qr", "hsh"), "--methods hsh: unknown method; allowed: full, "),
        (("gone.yaml",), "config gone.yaml: No such file or directory"),
        (("run.yaml", "--settings", "gone.yaml"), "--settings gone.yaml: No such file or directory"),
        (("run.yaml", "--set", "data.path=gone"), "gone"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    typed: Typed, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = typed(*arguments, "--out", "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
    assert not (tmp_path / "out").exists()


def test_a_folder_of_another_sweep_is_refused(typed: Typed, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "sweep-1.json").write_text(json.dumps({"seed": 1, "rows": [], "config": {"training": {"epochs": 9}}}))
    code, _, err = typed("run.yaml", "--methods", "fp16", "--out", "out")
    assert (code, err.count("\n")) == (2, 1)
    assert "of a sweep with another config (training.epochs: 9 there, 1 here)" in err
    assert yaml.safe_load((tmp_path / "run.yaml").read_text())["training"]["epochs"] == 1
