"""Compiling on first use, and going without."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from recsys_emb.native.build import VECTORS, library

SOURCE = """extern "C" int answer() {
  int n = 0;
#pragma omp parallel for reduction(+:n)
  for (int i = 0; i < 7; ++i) n += 6;
  return n;
}
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one; what was found before is forgotten."""
    library.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: VECTORS[0])
    return tmp_path / "cache" / "recsys_emb"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "answer.cpp"
    path.write_text(SOURCE)
    return path


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@needs_compiler
def test_compiled_once_and_again_when_it_changed(source: Path, cache: Path) -> None:
    found = library(source)
    assert found is not None
    assert found.answer() == 42
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    library.cache_clear()
    again = library(source)
    assert again is not None
    assert kept.stat().st_mtime_ns == stamp
    library.cache_clear()
    source.write_text(SOURCE.replace("n += 6", "n += 7"))
    changed = library(source)
    assert changed is not None
    assert changed.answer() == 49
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("missing", ["compiler", "vectors", "wish"])
def test_without_a_compiler_or_the_processor_or_the_wish(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    if missing == "compiler":
        monkeypatch.setenv("CXX", "no-such-compiler")
    elif missing == "vectors":
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "DEFAULT")
    else:
        monkeypatch.setenv("RECSYS_EMB_NATIVE", "0")
    assert library(source) is None
    assert not cache.exists()


@needs_compiler
def test_what_does_not_compile_and_a_cache_that_cannot_be_written(
    source: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    source.write_text("this is no C++")
    assert library(source) is None
    assert not list(cache.glob("*"))
    library.cache_clear()
    cache.rmdir()
    cache.write_text("")  # a file where the folder should be
    source.write_text(SOURCE)
    assert library(source) is None
    assert all("answer.cpp: not compiled" in m and "\n" not in m for m in caplog.messages)
    assert len(caplog.messages) == 2
