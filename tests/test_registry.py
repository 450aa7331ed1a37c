"""The registry refuses what would make a name mean two things, and finds plug-ins of other packages."""

from __future__ import annotations

import sys
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


def test_an_entry_point_adds_a_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with a distribution folder beside it, as pip would install it."""
    (tmp_path / "tiny_method.py").write_text(
        "from recsys_emb.embeddings.backends.full import FullBackend\nclass Tiny(FullBackend):\n    summary = 'tiny'\n"
    )
    info = tmp_path / "tiny_method-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-method\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[recsys_emb.backends]\ntiny = tiny_method:Tiny\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry: Registry = Registry("backend", "recsys_emb.embeddings.backends", "recsys_emb.backends")
    assert registry.get("tiny").__module__ == "tiny_method"
    sys.modules.pop("tiny_method")
