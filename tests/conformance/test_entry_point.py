"""A backend of another package, found through its entry point, trains like one of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import yaml

import tests.plugin

TWO_STAGES = """

from recsys_emb.embeddings.stages import InitFrom, Train


class TwoStages(Modulo):
    @classmethod
    def stages(cls, config):
        return Train("first"), Train("second", InitFrom(optimizer=True))
"""


def test_a_backend_of_another_package_trains(prepared: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "modulo_rows-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "modulo_rows.py").write_text(Path(tests.plugin.__file__).read_text() + TWO_STAGES)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: modulo-rows\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recsys_emb.backends]\nmodulo = modulo_rows:TwoStages\n")
    config = {
        "data": {"path": str(prepared)},
        "model": {"name": "lr"},
        "embedding": {"backend": "modulo", "options": {"rows": 32}},
        "training": {"epochs": 1, "batch_size": 500},
        "device": "cpu",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own: this one's registry keeps to what is installed."""
        return subprocess.run(
            [sys.executable, "-m", "recsys_emb", *arguments],
            env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    trained = command("train", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--json")
    assert trained.returncode == 0, trained.stderr
    report = json.loads(trained.stdout)
    assert report["backend"] == "modulo"
    assert report["serving_bytes"] == 4 * 32
    assert [s["name"] for s in report["stages"]] == ["first", "second"]
    assert 0 < report["auc"] < 1
    mistaken = command("validate", str(tmp_path / "run.yaml"), "--set", "embedding.options.rows=0")
    assert mistaken.returncode == 2
    assert "embedding.options.rows" in mistaken.stderr
