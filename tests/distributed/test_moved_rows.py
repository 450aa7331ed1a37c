"""Rows that move between processes."""

from __future__ import annotations

from pathlib import Path

import torch

from recsys_emb.training.optimizers import TABLE_OPTIMIZERS
from tests.distributed.moving import train, train_on


def test_rows_that_move_are_made_anew_and_read_on_two_processes_as_on_one(tmp_path: Path) -> None:
    two = train_on(2, tmp_path / "found.pt")
    for name in TABLE_OPTIMIZERS:
        one = train(name)
        assert one.keys() == two[name].keys()
        for key, values in one.items():
            torch.testing.assert_close(two[name][key], values, msg=lambda m, key=key, name=name: f"{name} {key}: {m}")
    first, second = two["copies"]["weight"]
    assert torch.equal(first, second)
