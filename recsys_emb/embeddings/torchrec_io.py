"""Rows to and from plain TorchRec collections, and their deduplicated batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.modules.embedding_configs import BaseEmbeddingConfig

from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.errors import UserError

NamedTable = tuple[str, EmbeddingBackend[Any], int]
"""A table's name, its backend, and its number in the backend's group."""

_PREFIXES = ("embedding_bags", "embeddings")  # EmbeddingBagCollection's, EmbeddingCollection's

ConfigT = TypeVar("ConfigT", bound=BaseEmbeddingConfig)


def copy_configs(configs: Sequence[ConfigT]) -> list[ConfigT]:
    """Configs for another collection, which may change its own."""
    return [copy.copy(c) for c in configs]


def write_rows(tables: Iterable[NamedTable], state_dict: Mapping[str, Tensor]) -> None:
    """Writes every table's rows into the weights of a TorchRec collection, block by block."""
    for name, backend, i in tables:
        weight, start = _weight(state_dict, name), 0
        for rows in backend.rows(i):
            weight[start : start + len(rows)] = rows
            start += len(rows)


def load_rows(tables: Iterable[NamedTable], state_dict: Mapping[str, Tensor]) -> None:
    """Gives every backend the rows of a TorchRec collection's state_dict. Raises UserError when it cannot."""
    for name, backend, i in tables:
        if backend.device.type == "meta":
            raise UserError(
                f"table {name!r} is on the meta device, which keeps no rows; make the collection on another"
            )
        backend.load_rows(i, _weight(state_dict, name))


def _weight(state_dict: Mapping[str, Tensor], table: str) -> Tensor:
    for prefix in _PREFIXES:
        if (key := f"{prefix}.{table}.weight") in state_dict:
            return state_dict[key]
    raise UserError(f"state_dict without the rows of table {table!r}; expected {_PREFIXES[0]}.{table}.weight")


@torch.fx.wrap
def one_bag_per_row(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
    """Undoes deduplication: bags stored once, with inverse indices, become one bag per row of the batch again."""
    found = kjt.inverse_indices_or_none()
    if found is None:
        return kjt
    names, inverse = found
    weighted = kjt.weights_or_none() is not None
    values: list[Tensor] = []
    lengths: list[Tensor] = []
    weights: list[Tensor] = []
    for key, bags in kjt.to_dict().items():
        chosen = inverse[names.index(key)]
        sizes = bags.lengths()[chosen]
        total = int(sizes.sum())
        shift = bags.offsets()[chosen] - (sizes.cumsum(0) - sizes)  # from a bag's new place to its old one
        where = torch.arange(total, device=chosen.device) + shift.repeat_interleave(sizes, output_size=total)
        values.append(bags.values()[where])
        lengths.append(sizes)
        if weighted:
            weights.append(bags.weights()[where])
    return KeyedJaggedTensor(
        kjt.keys(), torch.cat(values), torch.cat(weights) if weighted else None, lengths=torch.cat(lengths)
    )
