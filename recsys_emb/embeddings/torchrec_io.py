"""Rows to and from plain TorchRec collections, their deduplicated batches, and the features wanted of a batch."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingCollection, KeyedJaggedTensor
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


@dataclass(frozen=True)
class PlainTable:
    """What ``embedding_bags[name]`` of a TorchRec collection has: ``weight``, float [num_embeddings, D]."""

    weight: Tensor


class PlainTables(Mapping[str, PlainTable]):
    """Tables by name. Taking one raises UserError where its rows are not what is stored."""

    def __init__(self, tables: Iterable[NamedTable]) -> None:
        self._tables = {name: (backend, i) for name, backend, i in tables}

    def __getitem__(self, name: str) -> PlainTable:
        backend, i = self._tables[name]
        try:
            return PlainTable(backend.plain_rows(i))
        except UserError as error:
            raise UserError(f"{error}; a collection's to_embedding_bag_collection() makes them") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)


def refuse_quantisation(collection: Any, config: Any) -> None:
    """Raises UserError where a pass of ``torch.ao.quantization`` means to quantise TorchRec's collections.

    Without it ``torchrec.inference.modules.quantize_embeddings`` would leave a collection of ours as it is, since such
    a pass looks types up in a dictionary, ``qconfig_dict``, of which a module is told its own type's entry alone.
    """
    frame: FrameType | None = sys._getframe(1)
    while config is None and frame is not None:
        if frame.f_code.co_name == "_propagate_qconfig_helper":
            types = frame.f_locals.get("qconfig_dict", ())
            config = next((t for t in types if t in (EmbeddingBagCollection, EmbeddingCollection)), None)
            break
        frame = frame.f_back
    if config is not None:
        bags = "bag_" if hasattr(collection, "to_embedding_bag_collection") else ""
        raise UserError(
            f"torchrec.quant knows plain rows only; put collection.to_embedding_{bags}collection() in the place of "
            f"{type(collection).__name__} first, or use collection.compact('int8')"
        )


@torch.fx.wrap
def one_bag_per_row(kjt: KeyedJaggedTensor, wanted: list[str]) -> KeyedJaggedTensor:
    """Undoes deduplication: bags stored once, with inverse indices, become one bag per row of the batch again.

    Raises:
        ValueError: wanted features have unequal numbers of bags, and there are no inverse indices.
    """
    found = kjt.inverse_indices_or_none()
    if found is None:
        if kjt.variable_stride_per_key():
            keys, bags = kjt.keys(), kjt.stride_per_key()
            first, rows = "", -1
            for key in wanted:
                if key in keys:
                    n = bags[keys.index(key)]
                    if rows >= 0 and n != rows:
                        raise ValueError(
                            f"'{first}' has {rows} bags and '{key}' has {n}: without inverse_indices a "
                            "KeyedJaggedTensor must have as many of every key"
                        )
                    first, rows = key, n
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


@torch.fx.wrap
def select(
    kjt: KeyedJaggedTensor, wanted: list[str], weighted: bool
) -> tuple[Tensor, Tensor, Tensor | None, list[int], list[int]]:
    """Ids [N], lengths, weights, sizes and bags of the wanted features, in their order."""
    keys = kjt.keys()
    order: list[int] = []
    for key in wanted:
        if key not in keys:
            raise KeyError(f"KeyedJaggedTensor without key '{key}'; it has {', '.join(keys)}")
        order.append(keys.index(key))
    ids, lengths = kjt.values(), kjt.lengths()
    weights = kjt.weights() if weighted else None
    if ids.is_floating_point():
        raise TypeError(f"ids must be integers, got {ids.dtype}")
    sizes, bags = kjt.length_per_key(), kjt.stride_per_key()
    if order != list(range(len(keys))):
        ids = _reordered(ids, sizes, order)
        lengths = _reordered(lengths, bags, order)
        if weights is not None:
            weights = _reordered(weights, sizes, order)
        sizes, bags = [sizes[i] for i in order], [bags[i] for i in order]
    return ids, lengths, weights, sizes, bags


def _reordered(values: Tensor, sizes: list[int], order: list[int]) -> Tensor:
    parts = values.split(sizes)
    return torch.cat([parts[i] for i in order])
