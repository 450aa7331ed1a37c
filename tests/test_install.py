"""`pip install '.[cpu]'` into an environment that has torch and torchrec gives a working command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_built_package_works_outside_the_repository(tmp_path: Path) -> None:
    """A new environment that sees this one's packages, so that nothing is downloaded and only ours is installed."""
    source = tmp_path / "source"
    shutil.copytree(ROOT / "recsys_emb", source / "recsys_emb", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    env = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(env)], check=True)
    packages = next((env / "lib").iterdir()) / "site-packages"
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = str(env / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", "--no-index", "--no-build-isolation", "-c", "constraints.txt"]
    done = subprocess.run([*install, ".[cpu]"], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    where = subprocess.run(
        [python, "-c", "import recsys_emb; print(recsys_emb.__file__)"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(where.stdout.strip()).is_relative_to(packages)
    listed = subprocess.run(
        [str(env / "bin" / "recsys-emb"), "backends", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "full" in [row["name"] for row in json.loads(listed.stdout)["backends"]]
    data = tmp_path / "data"
    prepare = ["data", "prepare", "synthetic", "--out", str(data), "--option", "rows=2000", "--option", "ids=500"]
    subprocess.run([str(env / "bin" / "recsys-emb"), *prepare], cwd=tmp_path, check=True, capture_output=True)
    config = tmp_path / "run.yaml"
    config.write_text(f"data: {{path: {data}}}\nmodel: {{name: lr}}\ntraining: {{epochs: 1}}\n")
    train = [str(env / "bin" / "recsys-emb"), "train", str(config), "--out", str(tmp_path / "run")]
    done = subprocess.run(train, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()  # page templates are part of the package
