"""The notebooks run from the first cell to the last, at small size, and are committed with their outputs."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from recsys_emb.config import parse_config
from recsys_emb.training.progress import Silent
from recsys_emb.training.run import train
from tests.report.conftest import write_search

nbformat = pytest.importorskip("nbformat", reason="the extra `notebooks` is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra `notebooks` is not installed")
pytest.importorskip("ipykernel", reason="the extra `notebooks` is not installed")

ROOT = Path(__file__).parent.parent
SWEEP = ROOT / "experiments" / "results" / "sweep"
NEEDS_SWEEP = pytest.mark.skipif(not any(SWEEP.glob("*-*.json")), reason="no results of experiments/sweep.py yet")
NOTEBOOKS = [
    pytest.param(path, id=path.stem, marks=[NEEDS_SWEEP] if path.stem.startswith("02") else [])
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
]
SIZE = {"ROWS": "3000", "TRIALS": "2", "SWEEP": str(SWEEP)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks run: what one of them prepares serves the next."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_runs(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SIZE.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    committed = [shape(cell) for cell in notebook.cells]
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert [shape(cell) for cell in notebook.cells] == committed, "outputs of another notebook: `make notebooks`"


@pytest.fixture
def run_notebook(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs a notebook's code in this process, beginning from the folder given; gives the names that it leaves."""
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)

    def run(name: str, variable: str, given: Path) -> dict[str, Any]:
        monkeypatch.setenv(variable, str(given))
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        assert variable in notebook.cells[0].source
        script = tmp_path / "notebook.py"
        script.write_text("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code"))
        return runpy.run_path(str(script))

    return run


def test_a_run_of_ones_own_is_read(run_notebook: Any, prepared: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(prepared, data)
    facts = json.loads((data / "dataset.json").read_text())
    facts.pop("bayes")  # nobody knows the best possible AUC of a shop's clicks
    (data / "dataset.json").write_text(json.dumps(facts))
    tree = {"data": {"path": str(data)}, "model": {"name": "fm", "embedding_dim": 4}, "training": {"epochs": 1}}
    report = train(parse_config(tree), tmp_path / "mine", Silent())
    assert "bayes_auc" not in report
    names = run_notebook("01_first_run", "RUN", tmp_path / "mine")
    assert names["trained"] == report
    assert set(names["frame"]["backend"]) == {"full", "full+pq"}
    assert not (tmp_path / "prepared").exists()  # no example was made


def test_a_sweep_of_ones_own_is_read(run_notebook: Any, tmp_path: Path) -> None:
    rows = [{"method": "full", "budget": None, "auc": 0.8, "serving_bytes": 1000, "ratio": 1.0}]
    rows += [{"method": "hash", "budget": 0.1, "auc": 0.75, "serving_bytes": 100, "ratio": 0.1}]
    (tmp_path / "sweep-1.json").write_text(json.dumps({"seed": 1, "rows": rows}))
    frame = run_notebook("02_memory_against_auc", "SWEEP", tmp_path)["frame"]
    assert frame["thousandths"].round(6).tolist() == [0, 50]


def test_a_search_of_ones_own_is_read(run_notebook: Any, tmp_path: Path) -> None:
    write_search(tmp_path / "mine")
    (tmp_path / "mine" / "best.yaml").write_text("model: {name: deepfm}\n")
    names = run_notebook("03_reading_a_search", "SEARCH", tmp_path / "mine")
    assert len(names["frame"]) == 6
    assert not (tmp_path / "prepared").exists()


def shape(cell: nbformat.NotebookNode) -> list[str]:
    """The kinds of a cell's outputs: text, figure, table; none for text cells."""
    return [kind for output in cell.get("outputs", []) for kind in sorted(output.get("data", ["stream"]))]


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_notebook_holds_no_trace_of_a_machine_or_a_mistake(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    text = path.read_text(encoding="utf-8")
    assert not [trace for trace in ("/tmp/", "/home/", "/work/", "/root/") if trace in text]
