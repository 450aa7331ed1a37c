"""The command as a user types it: exit codes, one-line mistakes, JSON, no tracebacks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from recsys_emb import cli


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of ``recsys-emb ARGUMENTS``."""
    monkeypatch.setattr(sys, "argv", ["recsys-emb", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    out = capsys.readouterr()
    return left.value.code, out.out, out.err


@pytest.fixture
def config(prepared: Path, tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    tree = {
        "data": {"path": str(prepared)},
        "model": {"name": "fm", "embedding_dim": 4},
        "training": {"epochs": 1, "batch_size": 512, "learning_rate": 0.01},
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def test_train_evaluate_compare(capsys, monkeypatch, config: Path, tmp_path: Path) -> None:
    code, out, err = run(capsys, monkeypatch, "train", str(config), "--out", str(tmp_path / "run"), "--json")
    assert code == 0
    report = json.loads(out)
    assert err == ""

    code, out, _ = run(capsys, monkeypatch, "evaluate", str(tmp_path / "run"), "--json")
    assert code == 0
    assert json.loads(out)["auc"] == report["auc"]

    page = tmp_path / "compared.html"
    code, out, _ = run(capsys, monkeypatch, "compare", str(tmp_path / "run"), "--out", str(page), "--json")
    assert code == 0
    assert json.loads(out)["runs"][0]["auc"] == report["auc"]
    assert page.is_file()
    assert page.with_suffix(".png").is_file()


def test_a_run_is_used_from_another_folder(capsys, monkeypatch, config: Path, prepared: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "clicks", tmp_path / "run"
    shutil.copytree(prepared, data)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    relative = ("--set", "data.path=clicks", "--out", str(out))
    code, trained, _ = run(capsys, monkeypatch, "train", str(config), *relative, "--json")
    assert code == 0
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, continued, _ = run(capsys, monkeypatch, "train", "--out", str(out), "--resume", "--json")
    assert code == 0
    assert json.loads(continued) == json.loads(trained)
    data = data.rename(tmp_path / "moved")
    code, _, err = run(capsys, monkeypatch, "compact", str(out), "--out", "artifact")
    assert code == 2
    assert f"{out}: its dataset {tmp_path}/clicks is gone; put it back, or pass --data DIR" in err
    for command in (("compact", str(out), "--out", "artifact"), ("evaluate", str(out))):
        code, figures, _ = run(capsys, monkeypatch, *command, "--data", str(data), "--json")
        assert code == 0
        assert json.loads(figures)["auc"] == pytest.approx(json.loads(trained)["auc"], abs=1e-6)


def test_tables_for_people(capsys, monkeypatch, config: Path, tmp_path: Path) -> None:
    code, out, _ = run(capsys, monkeypatch, "train", str(config), "--out", str(tmp_path / "run"), "--set", "seed=7")
    assert code == 0
    for part in ("test AUC", "gap to Bayes", "embeddings, served", "training state", "peak memory"):
        assert part in out
    code, out, _ = run(capsys, monkeypatch, "compare", str(tmp_path / "run"))
    assert code == 0
    assert "fm" in out


@pytest.mark.parametrize("command", ["backends", "models"])
def test_lists(capsys, monkeypatch, command: str) -> None:
    code, out, _ = run(capsys, monkeypatch, command, "--json")
    assert code == 0
    names = [row["name"] for row in json.loads(out)[command]]
    assert names == sorted(names)
    code, table, _ = run(capsys, monkeypatch, command)
    assert all(name in table for name in names)


def test_validate(capsys, monkeypatch, config: Path, prepared: Path) -> None:
    code, out, _ = run(capsys, monkeypatch, "validate", str(config), "--json")
    facts = json.loads(out)
    schema = json.loads((prepared / "schema.json").read_text())
    assert code == 0
    assert facts["serving_bytes"] == 4 * 5 * sum(schema["vocabularies"].values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "Missing argument 'CONFIG'"),
        (["trian"], "No such command 'trian'"),
        (["train", "nope.yaml"], "config nope.yaml: No such file"),
        (["train", "CONFIG", "--set", "training.epochs=0"], "training.epochs"),
        (["train", "CONFIG", "--set", "model={name: deepfm, hidden: abc}"], "allowed: list of integers from 1"),
        (["train", "CONFIG", "--set", "model.nam=fm"], "did you mean 'name'"),
        (["train", "CONFIG", "--set", "data.path=/nowhere"], "does not exist; make one with `recsys-emb data prepare`"),
        (["train", "CONFIG", "--out", "TMP"], "exists already; continue it with --resume"),
        (["train", "CONFIG", "--set", "device=cuda"], "device: cuda was asked for"),
        (["train", "CONFIG", "--resume"], "--resume: name the run to continue with --out"),
        (["train", "CONFIG", "--resume", "--out", "TMP/none"], "holds no run to continue"),
        (["evaluate", "TMP"], "no config.yaml"),
        (["compare", "TMP"], "TMP"),
        (["validate", "CONFIG", "--set", "embedding.budget=10B"], "full cannot fit in 10 bytes; the least"),
        (["data", "describe", "TMP"], "not a prepared dataset"),
        (["data", "prepare", "criteoo", "--out", "x"], "unknown data source 'criteoo' (did you mean 'criteo'?)"),
        (["data", "prepare", "criteo", "--out", "x"], "pass --input PATH"),
        (["data", "prepare", "synthetic", "--out", "x", "--option", "rowz=3"], "rowz: unknown key"),
        (["demo", "--rows", "5"], "--rows"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    capsys, monkeypatch, config: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    import torch

    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    filled = [a.replace("CONFIG", str(config)).replace("TMP", str(tmp_path)) for a in arguments]
    code, _, err = run(capsys, monkeypatch, *filled)
    assert code == 2
    assert err.startswith("recsys-emb: ")
    assert err.count("\n") == 1
    assert message.replace("TMP", str(tmp_path)) in err


def test_ctrl_c_is_one_line(capsys, monkeypatch, config: Path) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("recsys_emb.config.load_config", interrupted)
    code, _, err = run(capsys, monkeypatch, "train", str(config))
    assert code == 130
    assert err == "recsys-emb: interrupted\n"


def test_anything_else_is_exit_1_without_a_traceback(capsys, monkeypatch, config: Path) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("some\nbug")

    monkeypatch.setattr("recsys_emb.config.load_config", broken)
    code, _, err = run(capsys, monkeypatch, "train", str(config))
    assert code == 1
    assert err == "recsys-emb: unexpected RuntimeError: some bug (--debug shows where)\n"


def test_debug_shows_the_traceback(monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recsys-emb", "train", "nope.yaml", "--debug"])
    with pytest.raises(Exception, match=r"nope\.yaml"):
        cli.main()


def test_every_command_has_help(capsys, monkeypatch) -> None:
    code, out, _ = run(capsys, monkeypatch, "--help")
    assert code == 0
    for command in ("train", "evaluate", "compare", "validate", "backends", "models", "demo", "data"):
        assert command in out
        code, text, _ = run(capsys, monkeypatch, command, "--help")
        assert code == 0
        assert len(text.splitlines()) > 5


def test_import_without_torchrec_says_what_to_install() -> None:
    hidden = (
        "import importlib.util as u, sys; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'torchrec' else found(name, *a)\n"
        "import recsys_emb"
    )
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "needs torch and torchrec: pip install" in last


def test_the_version(capsys, monkeypatch) -> None:
    assert run(capsys, monkeypatch, "--version") == (0, f"recsys-emb {version('recsys_emb')}\n", "")
