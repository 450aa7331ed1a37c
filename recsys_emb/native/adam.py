"""Adam of the rows that a batch looks up, on fp32 and the CPU, reading and writing every row once.

The same functions as in :mod:`recsys_emb.training.adam_rows`.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recsys_emb.native.build import library


class AdamState(NamedTuple):
    """A table [R, D], its moments [R, D], and int32 [R] the step of every row's last update (0: never)."""

    weight: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    last_step: Tensor


class AdamRule(NamedTuple):
    """Adam's numbers; ``l2`` is coupled, gradient ``l2 * w``."""

    lr: float
    l2: float
    beta1: float
    beta2: float
    eps: float


def fits(weight: Tensor) -> bool:
    """Whether these functions take rows of this table, on this machine."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and _library() is not None
    )


def distinct_rows(rows: Tensor, last_step: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`recsys_emb.training.adam_rows.distinct_rows`; in the order of first occurrence."""
    rows = rows.contiguous()
    distinct, inverse = torch.empty_like(rows), torch.empty_like(rows)
    last = last_step.new_empty(len(rows))
    found = _library().adam_distinct(
        *_pointer_and_size(rows), *_pointer_and_size(last_step), step, *map(_pointer, (distinct, inverse, last))
    )
    if found < 0:
        raise IndexError(f"row {rows[-1 - found].item()} is out of range for a table of {len(last_step)}")
    return distinct[:found], inverse, last[:found]


def catch_up(state: AdamState, rows: Tensor, last: Tensor, history: Tensor, rule: AdamRule) -> None:
    """As :func:`recsys_emb.training.adam_rows.catch_up`."""
    tables, dim = map(_pointer, state[:3]), state.weight.shape[1]
    rows, last, history = rows.contiguous(), last.contiguous(), history.contiguous()
    _library().adam_catch_up(
        *tables, dim, _pointer(rows), *_pointer_and_size(last), _pointer(history), len(history) - 1, _Rule(*rule)
    )


def update(state: AdamState, rows: Tensor, grad: Tensor, step: int, rule: AdamRule) -> None:
    """As :func:`recsys_emb.training.adam_rows.update`."""
    tables, dim = map(_pointer, state), state.weight.shape[1]
    rows, grad = rows.contiguous(), grad.contiguous()
    _library().adam_update(*tables, dim, _pointer(rows), *_pointer_and_size(grad), step, _Rule(*rule))


def _pointer(tensor: Tensor) -> int:
    return tensor.data_ptr()


def _pointer_and_size(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), len(tensor)


class _Rule(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("lr", "l2", "beta1", "beta2", "eps")]


@cache
def _library() -> Any:
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is not None:
        pointer, size, step = ctypes.c_void_p, ctypes.c_long, ctypes.c_int32
        found.adam_distinct.argtypes = [pointer, size, pointer, size, step, *[pointer] * 3]
        found.adam_distinct.restype = size
        found.adam_catch_up.argtypes = [*[pointer] * 3, size, pointer, pointer, size, pointer, step, _Rule]
        found.adam_update.argtypes = [*[pointer] * 4, size, pointer, pointer, size, step, _Rule]
        found.adam_catch_up.restype = found.adam_update.restype = None
    return found
