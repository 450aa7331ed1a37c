"""Embedding tables of which every process holds a part of the rows.

Process r of W holds rows r, r + W, r + 2W, ... of every physical table. Neighbouring rows are ids of like frequency in
one field, so each process gets its share of the popular rows, whatever the method stores. What follows from rows (their
optimizer state) lies with them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_emb.allocator import huge_pages
from recsys_emb.distributed.exchange import RowExchange
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.tables import EmbeddingTable

CHUNK_ROWS = 1 << 18
"""Rows made or sent at a time."""


class ShardedTable(EmbeddingTable):
    """This process's rows of a table; a lookup finds all of them.

    A lookup is a collective: every process must make it, with whatever rows it needs. In a state_dict the weight is
    the whole table on the first process and a meta tensor of its shape on the others; a whole table is loaded.

    Args:
        table: the whole table, on the meta device.
        device: of this process.
    """

    def __init__(self, table: EmbeddingTable, device: torch.device) -> None:
        rank, world, whole = dist.get_rank(), dist.get_world_size(), table.num_rows
        super().__init__(whole, table.weight.shape[1], table.init, "meta")
        rows = torch.empty(len(range(rank, whole, world)), table.weight.shape[1], device=device)
        self.weight = nn.Parameter(huge_pages(rows))
        self.rank, self.world = rank, world
        self.per_rank = -(-whole // world)
        self.agree = partial(dist.broadcast, src=0)
        self._exchange = RowExchange(self.per_rank * self.world, self.weight.shape[1], super().forward, device)

    def forward(self, rows: Tensor) -> Tensor:
        # Each row is asked for once, however often the batch has it.
        distinct, inverse = torch.unique(rows, return_inverse=True)
        holder = distinct % self.world
        vectors = self._exchange(holder * self.per_rank + distinct // self.world)
        return F.embedding(inverse, vectors)

    # -- rows between the steps ---------------------------------------------------------------------------------------

    def _own(self, rows: Tensor) -> Tensor:
        return rows[self._held(rows)] // self.world

    def _held(self, rows: Tensor) -> Tensor:
        return rows % self.world == self.rank

    def _current(self, rows: Tensor) -> Tensor:
        return self._from_all(super()._current(self._own(rows)), rows)

    def _move(self, values: Tensor, src: Tensor, dst: Tensor) -> None:
        moved = self._from_all(values.index_select(0, self._own(src)), src)
        values.index_copy_(0, self._own(dst), moved[self._held(dst)])

    def _write(self, rows: Tensor, values: Tensor) -> None:
        super()._write(self._own(rows), values[self._held(rows)])

    def _from_all(self, own: Tensor, rows: Tensor) -> Tensor:
        """The entries of rows [N] on every process, given those that this one holds."""
        found = own.new_zeros(len(rows), *own.shape[1:])
        found[self._held(rows)] = own
        dist.all_reduce(found)
        return found

    # -- between the whole table and this process's shard -------------------------------------------------------------

    def shard(self, values: Tensor) -> Tensor:
        return values[self.rank :: self.world]

    @torch.no_grad()
    def gather(self, values: Tensor) -> Tensor:
        shape = (self.num_rows, *values.shape[1:])
        if self.rank:
            for rows in values.contiguous().split(CHUNK_ROWS):
                dist.send(rows, 0)
            return torch.empty(shape, dtype=values.dtype, device="meta")
        out = torch.empty(shape, dtype=values.dtype)
        out[0 :: self.world] = values.cpu()
        for rank in range(1, self.world):
            for rows in out[rank :: self.world].split(CHUNK_ROWS):
                received = torch.empty(rows.shape, dtype=rows.dtype, device=values.device)
                dist.recv(received, rank)
                rows.copy_(received)
        return out

    def total(self, sums: Tensor) -> Tensor:
        out = sums.clone()
        dist.all_reduce(out)
        return out

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The values that the whole table would have got, from the same random numbers."""
        start = 0
        for part in self.init:
            for first in range(0, part.rows, CHUNK_ROWS):
                rows = torch.empty(min(CHUNK_ROWS, part.rows - first), self.weight.shape[1])
                part.fill(rows)
                skip = (self.rank - start) % self.world
                mine = rows[skip :: self.world]
                at = (start + skip) // self.world
                self.weight[at : at + len(mine)] = mine.to(self.weight.device)
                start += len(rows)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.gather(self.weight.detach())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        key = prefix + "weight"
        if key in state_dict and len(state_dict[key]) == self.num_rows:
            state_dict = {**state_dict, key: self.shard(state_dict[key])}
        super()._load_from_state_dict(state_dict, prefix, *args)


def shard(backend: EmbeddingBackend[Any], device: torch.device) -> EmbeddingBackend[Any]:
    """Gives a backend made on the meta device its weights: this process's rows of its tables, and all of the rest."""
    return materialize(backend, device, lambda table: ShardedTable(table, device))


def materialize(
    backend: EmbeddingBackend[Any], device: torch.device, replace: Callable[[EmbeddingTable], EmbeddingTable]
) -> EmbeddingBackend[Any]:
    """Gives a backend made on the meta device other tables, and all that is not in tables its weights.

    The weights are those that the backend would have got there at once, from the same random numbers: modules are
    filled in the order in which a backend registers them, which is that in which it makes them.

    Raises:
        ValueError: a module has parameters and cannot fill them (no ``reset_parameters``).
    """
    for name, module in list(backend.named_modules()):
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if isinstance(module, EmbeddingTable) and module.weight.numel():
            parent, _, attribute = name.rpartition(".")
            module = replace(module)
            setattr(backend.get_submodule(parent), attribute, module)
        elif any(tensor.is_meta for tensor in own):
            module.to_empty(device=device, recurse=False)
            if not hasattr(module, "reset_parameters") and any(True for _ in module.parameters(recurse=False)):
                raise ValueError(f"{backend.name}: {name or 'the backend'} has parameters but no reset_parameters()")
        if own and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return backend
