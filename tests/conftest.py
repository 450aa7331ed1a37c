"""Fixtures that many tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.quiet import quiet_torch
from tests.plugin import Modulo

quiet_torch()
settings.register_profile("repeatable", derandomize=True, deadline=None)  # the same cases on every machine
settings.load_profile("repeatable")
backend_registry.register("modulo", listed=False)(Modulo)  # for tests that name it; lists are as users see them


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 synthetic rows, 2,000 ids. Never written to."""
    out = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare(make_source("synthetic", options={"rows": 3000, "ids": 2000, "seed": 3}), out, name="tiny")
    return out


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real datasets named by RECSYS_EMB_DATA; skips where it is not set."""
    folder = os.environ.get("RECSYS_EMB_DATA")
    if not folder:
        pytest.skip("RECSYS_EMB_DATA is not set: no real data to test on")
    return Path(folder)


@pytest.fixture
def exact_products() -> Iterator[None]:
    """For comparisons with other programs: a training in bf16 lets fp32 products round on processors with AMX."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)
