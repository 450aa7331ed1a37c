"""The notebooks run from the first cell to the last, at small size, and are committed with their outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

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
