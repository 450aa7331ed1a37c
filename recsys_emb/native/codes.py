"""Rows of codebooks summed by packed codes, on the CPU, while they are not trained.

The same function as in :mod:`recsys_emb.embeddings.posttraining._decoding`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_emb.native.build import library


def fits(books: Tensor, levels: Tensor, ids: Tensor) -> bool:
    """Whether ``decode`` takes these, on this machine."""
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or (torch.is_grad_enabled() and books.requires_grad):
        return False
    return books.dtype == torch.float32 and len(levels) > 0 and _library() is not None


def decode(codes: Tensor, books: Tensor, levels: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
    """As :func:`recsys_emb.embeddings.posttraining._decoding.decode`."""
    codes, books, levels, ids = (x.contiguous() for x in (codes, books, levels, ids))
    ends = torch.tensor(list(accumulate(counts)))
    out = books.new_empty(len(ids), books.shape[1])
    read, where = (
        (codes.data_ptr(), len(codes), books.data_ptr(), books.shape[1]),
        (levels.data_ptr(), *levels.shape[:2]),
    )
    _library().codes_decode(*read, *where, ends.data_ptr(), ids.data_ptr(), len(ids), out.data_ptr())
    return out


@cache
def _library() -> Any:
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_long
        read, where = (pointer, size, pointer, size), (pointer, size, size)
        found.codes_decode.argtypes = [*read, *where, pointer, pointer, size, pointer]
        found.codes_decode.restype = None
    return found
