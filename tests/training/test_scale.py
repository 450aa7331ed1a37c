"""Large tables; run by `make stress`."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Criteo's 33.8 million ids at D = 16: weights, two moments and a step count for each row.
PROGRAM = """
import torch
from recsys_emb.embeddings.backends.full import FullBackend
from recsys_emb.embeddings.base import BackendConfig, GroupSpec, TableSpec
from recsys_emb.training.optimizers import CatchUpAdam
from recsys_emb.training.runtime import peak_rss_bytes

before = peak_rss_bytes()
ids = 33_800_000
backend = FullBackend(GroupSpec((TableSpec("t", ids),), 16), BackendConfig())
optimizer = CatchUpAdam(backend.table, 1e-3, 1e-5)
generator = torch.Generator().manual_seed(1)
for _ in range(20):
    rows = torch.randint(ids, (26 * 4096,), generator=generator)
    backend(rows, [len(rows)]).square().sum().backward()
    optimizer.step()
optimizer.catch_up()
held = backend.table.weight.nbytes + optimizer.state_bytes()
print((peak_rss_bytes() - before) / held)
"""


@pytest.mark.stress
def test_training_33_million_ids_holds_little_more_than_weights_and_state() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < 1.2
