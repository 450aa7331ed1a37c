"""Histories of one length."""

import torch

from recsys_emb.models.histories import padded


def test_histories_end_at_the_end_of_their_rows():
    values = torch.arange(1.0, 15).view(7, 2)
    slots, there = padded(values, torch.tensor([2, 0, 4, 1]), 3)
    assert slots[..., 0].tolist() == [[0, 1, 3], [0, 0, 0], [7, 9, 11], [0, 0, 13]]  # of four the last three
    assert slots[..., 1].tolist() == [[0, 2, 4], [0, 0, 0], [8, 10, 12], [0, 0, 14]]
    assert there.tolist() == [[False, True, True], [False] * 3, [True] * 3, [False, False, True]]


def test_no_rows_and_no_items():
    slots, there = padded(torch.ones(0, 2), torch.zeros(3, dtype=torch.int64), 4)
    assert slots.shape == (3, 4, 2)
    assert not slots.any()
    assert not there.any()
    slots, there = padded(torch.ones(0, 2), torch.zeros(0, dtype=torch.int64), 4)
    assert slots.shape == (0, 4, 2)
    assert there.shape == (0, 4)
