"""Damaged files of every kind: read right or refused in one line. `python -m benchmarks.robustness` counts them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.robustness.damage import Damage, damages
from tests.robustness.readers import READERS, Reader

CASES = {"tsv": 100, "csv": 200, "json": 500, "dataset": 300, "artifact": 100, "checkpoint": 200}
"""In `make test`; the stress test and the benchmark try many more."""


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """Without the warnings of checkpoints that are passed over."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def try_many(reader: Reader, cases: int) -> Counter[str]:
    """Draws damages until ``cases`` were tried; how many were read and how many refused."""
    tally: Counter[str] = Counter()

    @settings(max_examples=cases, database=None, suppress_health_check=list(HealthCheck))
    @given(damages, st.integers(0, 10_000))
    def attempt(done: list[Damage], which: int) -> None:
        tally["refused" if reader.case(done, which) is None else "read"] += 1

    attempt()
    return tally


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
    assert try_many(READERS[name](tmp_path), 30 * CASES[name]).total() >= 30 * CASES[name]


@pytest.mark.parametrize("name", READERS)
def test_undamaged_files_are_read(name: str, tmp_path: Path) -> None:
    reader = READERS[name](tmp_path)
    assert all(reader.case([("insert", 0, 0, b"")], which) for which in range(6))
