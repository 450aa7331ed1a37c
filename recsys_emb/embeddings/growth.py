"""Trained weights in tables that have more ids: known ids keep their rows, new ones begin by a choice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.errors import SettingError

NewIds = Literal["oov", "mean", "random"]


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a physical table before and after: row ``before + i`` goes on as ``after + i``.

    Attributes:
        before, after: where the block begins.
        rows: how many went on.
        new: how many follow them now.
    """

    before: int
    after: int
    rows: int
    new: int


def blocks_of(source: EmbeddingTable, target: EmbeddingTable) -> list[Block] | None:
    """How the rows of one table lie in another of more rows; None where they do not."""
    pairs = list(zip(source.init, target.init))
    same = len(source.init) == len(target.init) and source.weight.shape[1] == target.weight.shape[1]
    if not same or any(old.rows > new.rows for old, new in pairs):
        return None
    blocks, before, after = [], 0, 0
    for old, new in pairs:
        blocks.append(Block(before, after, old.rows, new.rows - old.rows))
        before, after = before + old.rows, after + new.rows
    return blocks


def grown_rows(values: Tensor, blocks: Sequence[Block]) -> Tensor:
    """An array with an entry for each row, [rows, ...], with zeros for the new ones."""
    grown = values.new_zeros([sum(b.rows + b.new for b in blocks), *values.shape[1:]])
    for b in blocks:
        grown[b.after : b.after + b.rows] = values[b.before : b.before + b.rows]
    return grown


def new_rows(blocks: Sequence[Block]) -> Tensor:
    """int64: the numbers of the rows that were not there before."""
    ranges = [torch.arange(b.after + b.rows, b.after + b.rows + b.new) for b in blocks]
    return torch.cat(ranges) if ranges else torch.empty(0, dtype=torch.int64)


def tables_of(module: torch.nn.Module) -> dict[str, EmbeddingTable]:
    """The physical tables, by name, in the order in which an optimizer has them."""
    return {name: m for name, m in module.named_modules() if isinstance(m, EmbeddingTable)}


@torch.no_grad()
def take_over(target: EmbeddingBackend[Any], source: EmbeddingBackend[Any], new_ids: NewIds) -> None:
    """Gives a new backend the weights of a trained one whose tables have fewer ids, or as many.

    Args:
        target: built with ``grown`` sizes.
        source: of the same method.
        new_ids: what an own row of a new id begins as: ``oov``, the row of id 0; ``mean`` of the table's rows;
            ``random``, as in a new table. Rows that ids share are as they were.

    Raises:
        SettingError: some array cannot go on.
    """
    theirs, own = tables_of(source), tables_of(target)
    others = {name: t for name, t in source.state_dict().items() if not _in_tables(name, theirs)}
    state = {name: t for name, t in target.state_dict().items() if not _in_tables(name, own)}
    wrong = [name for name, t in state.items() if name not in others or others[name].shape != t.shape]
    blocks = {name: blocks_of(theirs[name], table) if name in theirs else None for name, table in own.items()}
    wrong += [name for name, found in blocks.items() if found is None]
    if wrong:
        raise SettingError("backend", f"{target.name} cannot go on with more ids: {wrong[0]} has no place for them")
    for name, tensor in state.items():
        tensor.copy_(others[name])
    owned = _owned_tables(target)
    if new_ids == "oov" and any(found and len(found) > len(target.spec.tables) for found in blocks.values()):
        raise SettingError("new_ids", f"oov: {target.name} has ranges of ids without such a row; use mean")
    for name, table in own.items():
        for block in blocks[name] or ():
            weight = table.weight[block.after : block.after + block.rows]
            weight.copy_(theirs[name].weight[block.before : block.before + block.rows])
            if block.new and block.rows and new_ids != "random" and id(table) in owned:
                begin = weight[0] if new_ids == "oov" else weight.mean(0)
                table.weight[block.after + block.rows : block.after + block.rows + block.new] = begin


def _in_tables(name: str, tables: dict[str, EmbeddingTable]) -> bool:
    return name.removesuffix(".weight") in tables


def _owned_tables(backend: EmbeddingBackend[Any]) -> set[int]:
    """The id() of the tables in which every id has its own row."""
    found = set()
    for module in backend.modules():
        rows = getattr(module, "transform", None) or getattr(module, "rows_of", None)
        if isinstance(rows, OwnRows) and isinstance(table := getattr(module, "table", None), EmbeddingTable):
            found.add(id(table))
    return found
