"""What commands import before they begin: seconds of torch and torchrec only where something is computed with them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.conftest import write_run

COMMAND = """
import sys
from recsys_emb import cli
sys.argv = ["recsys-emb", *sys.argv[1:]]
try:
    cli.main()
finally:
    print("IMPORTED", *(name for name in {names!r} if name in sys.modules))
"""
HEAVY = ("torch", "torchrec", "matplotlib", "optuna", "scipy", "tensorboard")
ALSO_DATA = (*HEAVY, "polars", "pyarrow", "numpy", "yaml")


def imported(names: tuple[str, ...], *arguments: str) -> set[str]:
    """Which of the modules a command has imported when it ends, in a process of its own."""
    command = [sys.executable, "-c", COMMAND.format(names=names), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("IMPORTED"))
    return set(line.split()[1:])


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["sweep", "--help"], ["data", "prepare", "--help"]])
def test_help_waits_for_nothing(arguments: list[str]) -> None:
    assert imported(ALSO_DATA, *arguments) == set()


@pytest.mark.parametrize("arguments", [["backends"], ["models", "din"], ["validate", "RUN"]])
def test_what_trains_nothing_waits_for_torch_alone(arguments: list[str], prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"data: {{path: {prepared}}}\nmodel: {{name: deepfm}}\n")
    filled = [a.replace("RUN", str(tmp_path / "run.yaml")) for a in arguments]
    assert imported((*HEAVY, "fbgemm_gpu"), *filled) == {"torch"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "list"],
        ["data", "describe", "PREPARED"],
        ["data", "guess", "TMP/rows.csv"],
        ["data", "prepare", "table", "--input", "TMP/rows.csv", "--schema", "TMP/rows.yaml", "--out", "TMP/out"],
        ["compare", "TMP/a", "TMP/b", "--against", "TMP/a"],
    ],
)
def test_what_computes_nothing_waits_for_no_torch(arguments: list[str], prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("item,click\n" + "".join(f"i{n % 7},{n % 2}\n" for n in range(100)))
    (tmp_path / "rows.yaml").write_text(
        "label: click\ncategorical: [item]\nsplit: {ratios: [0.6, 0.2, 0.2], seed: 1}\n"
    )
    for name, seed in (("a", 1), ("b", 2)):
        write_run(tmp_path / name, seed=seed)
    filled = [a.replace("PREPARED", str(prepared)).replace("TMP", str(tmp_path)) for a in arguments]
    assert imported(HEAVY, *filled) == set()
