"""Damaged files of every kind: read right or refused in one line. `python -m benchmarks.robustness` counts them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.robustness.fuzz import try_many
from tests.robustness.readers import READERS

CASES = {"tsv": 100, "csv": 200, "json": 500, "dataset": 300, "artifact": 100, "fingerprints": 60, "checkpoint": 200}
"""In `make test`; the stress test and the benchmark try many more."""


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Without the warnings of checkpoints that are passed over."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_right_or_refused(name: str, tmp_path: Path) -> None:
    tally = try_many(READERS[name](tmp_path), CASES[name])
    assert tally.total() >= CASES[name]
    assert tally["read"]
    assert tally["refused"]


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore:Reading `.npy`")
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files(name: str, tmp_path: Path) -> None:
    assert try_many(READERS[name](tmp_path), 30 * CASES[name], first_seed=1).total() >= 30 * CASES[name]


@pytest.mark.parametrize("name", READERS)
def test_undamaged_files_are_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name](tmp_path)
    assert all(reader.case([("insert", 0, 0, b"")], which) for which in range(6))
