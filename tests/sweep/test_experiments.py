"""``experiments/sweep.py`` shows whatever results stand in its folder."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import pytest

from tests.sweep.conftest import Swept

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def test_the_readme_of_the_experiments_has_each_sweep_and_its_plots(
    swept: Swept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in (1, 2):
        for name in ("one-deepfm", "two-deepfm"):
            shutil.copy(swept.sweep.results / f"sweep-{seed}.json", tmp_path / f"{name}-{seed}.json")
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    importlib.import_module("sweep").write_readme(tmp_path)
    text = (tmp_path / "README.md").read_text()
    grid = (swept.sweep.results / "sweep.md").read_text().split("\n\n")[2]
    assert text.count(grid) == 2
    for plot in ("one-deepfm.png", "two-deepfm-with-vocabularies.png"):
        assert (tmp_path / plot).stat().st_size > 5000
        assert f"({plot})" in text
