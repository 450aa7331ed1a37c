"""The registry refuses what would make a name mean two things, and finds plug-ins of other packages."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys_emb.embeddings import backend_registry
from recsys_emb.errors import UserError
from recsys_emb.models import model_registry
from recsys_emb.registry import Registry


def make() -> Registry:
    return Registry("thing", "recsys_emb.embeddings.backends", "recsys_emb.nothing")


def test_a_taken_name_is_refused() -> None:
    registry = make()
    first, second = type("First", (), {}), type("Second", (), {})
    registry.register("a")(first)
    with pytest.raises(ValueError, match="already registered"):
        registry.register("a")(second)


@pytest.mark.parametrize("name", ["", "Full", "a b", "1a", "a.b"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        make().register(name)


def test_an_unlisted_entry_is_found_by_its_name_alone() -> None:
    registry = make()
    found = type("Found", (), {})
    registry.register("found", listed=False)(found)
    assert "found" not in registry.names()
    assert registry.get("found") is found


def test_the_names_that_configs_use_are_there() -> None:
    assert {"lr", "fm", "wide_deep", "deepfm", "dcnv2", "dlrm", "autoint", "autoint_plus", "din"} <= set(
        model_registry.names()
    )
    assert "full" in backend_registry.names()


def test_unknown_names_list_what_there_is() -> None:
    with pytest.raises(UserError, match=r"unknown model 'dln'.*did you mean 'din'.*available: autoint"):
        model_registry.get("dln")


def test_every_entry_describes_itself() -> None:
    for registry in (backend_registry, model_registry):
        for name in registry.names():
            entry = registry.describe(name)
            assert entry["name"] == name
            assert 10 < len(entry["summary"]) < 90
            assert "name" not in entry["options"]


@pytest.fixture
def plugged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """A package with a distribution folder beside it, as pip would install it: one good entry, three bad ones."""
    (tmp_path / "tiny_method.py").write_text(
        "from recsys_emb.embeddings.backends.full import FullBackend\n"
        "class Tiny(FullBackend):\n    summary = 'tiny'\n\n"
        "NUMBER = 3\n"
    )
    info = tmp_path / "tiny_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-method\nVersion: 1.0\n")
    lines = [
        "tiny = tiny_method:Tiny",
        "gone = no_such_module:X",
        "number = tiny_method:NUMBER",
        "qr = tiny_method:Tiny",
    ]
    (info / "entry_points.txt").write_text("\n".join(["[recsys_emb.backends]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry = Registry("backend", "recsys_emb.embeddings.backends", "recsys_emb.backends")
    backend_registry.names()
    registry._entries.update(backend_registry._entries)  # their modules register them only once
    yield registry
    sys.modules.pop("tiny_method", None)


def test_an_entry_point_adds_a_backend(plugged: Registry) -> None:
    assert plugged.get("tiny").__module__ == "tiny_method"
    assert plugged.get("tiny") is plugged.get("tiny")
    assert plugged.describe("tiny")["summary"] == "tiny"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("gone", "no_such_module:X of tiny-method cannot be loaded (ModuleNotFoundError: No module named"),
        ("number", "tiny_method:NUMBER of tiny-method cannot be loaded (TypeError: it is no class"),
        ("qr", "tiny_method:Tiny of tiny-method cannot be loaded (ValueError: backend 'qr' is already registered by"),
    ],
)
def test_a_bad_entry_point_is_named_when_it_is_asked_for(plugged: Registry, name: str, why: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"backend {name!r}: entry point {why}")):
        plugged.get(name)
    assert why in plugged.describe(name)["summary"]
    assert {"full", "gone", "number", "tiny"} <= set(plugged.names())
    plugged.get("full")
