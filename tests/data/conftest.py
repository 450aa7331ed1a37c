"""Fixtures of the data tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """The folder of real data; the test is skipped without it."""
    if "RECSYS_EMB_DATA" not in os.environ:
        pytest.skip("RECSYS_EMB_DATA is not set")
    return Path(os.environ["RECSYS_EMB_DATA"])
