"""What is asked of the system for large tensors."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys_emb.allocator import LARGE, huge_pages

SMAPS = Path("/proc/self/smaps")


def flags(tensor: Tensor) -> list[str]:
    """Of the mapping that the tensor's middle lies in."""
    middle, inside = tensor.data_ptr() + tensor.nbytes // 2, False
    for line in SMAPS.read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= middle < end
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("no such mapping")


def fresh(size: int) -> Tensor:
    """uint8 [size] in a mapping of its own: freed memory remembers what was asked for it."""
    return torch.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), dtype=torch.uint8)


@pytest.mark.skipif(not SMAPS.exists(), reason="no /proc/self/smaps")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without huge pages")
def test_a_large_tensor_lies_in_huge_pages_and_a_small_one_does_not() -> None:
    assert "hg" in flags(huge_pages(fresh(LARGE)))
    assert "hg" not in flags(huge_pages(fresh(LARGE - 4096)))


@pytest.mark.parametrize("offset", [0, 1, 4097])
def test_the_tensor_itself_is_given_back_whole(offset: int) -> None:
    tensor = torch.ones(2 * LARGE, dtype=torch.uint8)[offset:]
    assert huge_pages(tensor) is tensor
    assert bool((tensor == 1).all())
    assert huge_pages(torch.empty(LARGE, device="meta")).device.type == "meta"
