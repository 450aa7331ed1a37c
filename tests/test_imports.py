"""Imports run one way: no two files of the package import each other, also not inside functions or by way of others."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_two_files_import_each_other() -> None:
    modules = {module_of(file): file for file in (ROOT / "recsys_emb").rglob("*.py")}
    graph = {name: imported(file.read_text(encoding="utf-8"), modules) for name, file in modules.items()}
    assert sum(map(len, graph.values())) > len(graph)  # the files were found, and what they import
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def imported(source: str, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = names & set(modules)
            found |= submodules | ({node.module or ""} if names - submodules else set())
    return found & set(modules)


def test_a_cycle_is_seen() -> None:
    modules = {"recsys_emb.a": Path("a.py"), "recsys_emb.b": Path("b.py"), "recsys_emb": Path("__init__.py")}
    assert imported("def f():\n    from recsys_emb import a", modules) == {"recsys_emb.a"}
    assert imported("from recsys_emb.b import x\nimport recsys_emb.a", modules) == {"recsys_emb.b", "recsys_emb.a"}
    with pytest.raises(CycleError):
        TopologicalSorter({"recsys_emb.a": {"recsys_emb.b"}, "recsys_emb.b": {"recsys_emb.a"}}).prepare()
