"""Ids of several tables lie one after another, table by table; counts say how many belong to each.

Counts are Python numbers, so nothing here waits for a device. Sizes may be symbols (``torch.export``) or proxies
(``torch.fx``): functions that look at them are calls of their own in an fx graph, typed so that TorchScript takes them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def per_id(values: Tensor, counts: Sequence[int], ids: Tensor) -> Tensor:
    """Each table's value, repeated for its ids: [K, ...] -> [n, ...] on the ids' device."""
    return repeated(values, list(counts), ids)


def split_ids(tensor: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """What belongs to each table: [n, ...] -> K tensors."""
    pieces = tensor.split(list(counts))
    return [pieces[i] for i in range(len(counts))]  # a proxy cannot be iterated


def check_ids(ids: Tensor, counts: Sequence[int], names: Sequence[str], sizes: Tensor) -> Tensor:
    """``ids``, int64 [n]; waits once for a device.

    Args:
        ids: each table's own.
        counts: how many belong to each table.
        names: of the tables.
        sizes: int64 [K], how many ids each table has.

    Raises:
        IndexError: an id is outside its table; names table, id and size.
    """
    return _checked(ids, list(counts), list(names), sizes)


def tally(numbers: Tensor, kinds: int) -> list[int]:
    """How often each of 0..kinds-1 occurs among ``numbers``, int [n]; waits for a device."""
    found = _tally(numbers, kinds)
    return [found[i] for i in range(kinds)]


def all_equal(counts: list[int]) -> bool:
    """Whether tables are known to have as many ids each; a symbol equals itself."""
    if not torch.jit.is_scripting() and torch.compiler.is_compiling():
        return _known_equal(counts)
    return min(counts) == max(counts)


def _known_equal(counts: list[int]) -> bool:
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes a while to import

    return all(statically_known_true(n == counts[0]) for n in counts)


@torch.fx.wrap
def repeated(values: Tensor, counts: list[int], ids: Tensor) -> Tensor:
    """As ``per_id``, for functions that TorchScript takes."""
    values = values.to(ids.device)
    rest: list[int] = list(values.shape[1:])
    if all_equal(counts):
        return values.unsqueeze(1).expand([len(counts), counts[0]] + rest).flatten(0, 1)  # noqa: RUF005  TorchScript
    return torch.cat([values[i].expand([n] + rest) for i, n in enumerate(counts)])  # noqa: RUF005


@torch.fx.wrap
def _tally(numbers: Tensor, kinds: int) -> list[int]:
    found: list[int] = torch.bincount(numbers, minlength=kinds).tolist()
    return found


@torch.fx.wrap
def _checked(ids: Tensor, counts: list[int], names: list[str], sizes: Tensor) -> Tensor:
    if not torch.jit.is_scripting() and torch.compiler.is_compiling():
        return ids
    if ids.numel() == 0 or ids.is_meta:
        return ids
    sizes = sizes.to(ids.device)
    if all_equal(counts):
        low, high = torch.aminmax(ids.view(len(counts), counts[0]), dim=1)
        bad = (low < 0) | (high >= sizes)
    else:
        bad = (ids < 0) | (ids >= repeated(sizes, counts, ids))
    if bool(bad.any()):
        for i, part in enumerate(ids.split(counts)):
            size = int(sizes[i])
            beyond = part[(part < 0) | (part >= size)]
            if beyond.numel():
                first = int(beyond[0])
                raise IndexError(f"table '{names[i]}': id {first} is outside 0..{size - 1}")
    return ids
