"""The processes of a run. The trainer talks to a World; with one process nothing is exchanged.

W processes (ranks) train one model in lockstep. Each takes its part of every batch and computes
``W * (sum of its rows' losses) / (rows of the batch)``, whose mean over the ranks is the batch's loss; so gradients are
averaged, as DistributedDataParallel and TorchRec do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout

from recsys_emb.distributed.launch import attempt, started_by_torchrun
from recsys_emb.embeddings.base import EmbeddingBackend
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.models.layers import BatchNorm

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class World:
    """One process."""

    rank = 0
    size = 1

    @property
    def is_rank_zero(self) -> bool:
        """Whether this process writes the run folder."""
        return self.rank == 0

    def build(self, make: Callable[[torch.device | str], EmbeddingBackend], device: torch.device) -> EmbeddingBackend:
        """A backend with this process's part of its tables; ``make`` makes it on a device, ``meta`` too."""
        return make(device)

    def prepare_model(self, model: M) -> M:
        """Tells layers and backends that other processes hold parts of the batch, and tables that they draw other
        random numbers."""
        return model

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Averages the gradients of parameters that every process has a copy of, in place."""

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        return value

    def all_reduce_sum(self, value: int) -> int:
        """The sum over the processes."""
        return value

    def gather(self, rows: Tensor) -> Tensor:
        """All processes' rows one after another, on every process."""
        return rows

    def seed_by_rank(self, seed: int) -> None:
        """Gives every process but the first random numbers of its own, once the model is built alike on all."""

    def all_reduce_max(self, value: int) -> int:
        """The maximum over the processes."""
        return value

    def rank_zero_first(self, work: Callable[[], T], after: Callable[[], T]) -> T:
        """What ``work`` gives on the first process and, after it, ``after`` on the others."""
        return work()

    def barrier(self) -> None:
        """Until all processes are here."""


class Ranks(World):
    """The processes that torchrun started. Use :func:`join`.

    Args:
        device: of this process.
        shard_tables: split the rows of embedding tables over the processes; otherwise each has all of them.
    """

    def __init__(self, device: torch.device, shard_tables: bool) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.device = device
        self.shard_tables = shard_tables

    def build(self, make: Callable[[torch.device | str], EmbeddingBackend], device: torch.device) -> EmbeddingBackend:
        from recsys_emb.distributed.tables import shard

        planned = make("meta")
        if not self.shard_tables or not any(isinstance(m, EmbeddingTable) for m in planned.modules()):
            return make(device)
        return shard(planned, device)

    def prepare_model(self, model: M) -> M:
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.total = _Total.apply
            if isinstance(module, EmbeddingTable):
                module.agree = partial(dist.broadcast, src=0)
            if isinstance(module, EmbeddingBackend):
                module.total, module.gathered = _Total.apply, self.gather
        return model

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        if not grads:
            return
        flat = torch.cat([g.reshape(-1) for g in grads])
        dist.all_reduce(flat)
        flat /= self.size
        for p, grad in zip(parameters, flat.split([g.numel() for g in grads])):
            p.grad = grad.view_as(p)

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value / self.size

    def all_reduce_sum(self, value: int) -> int:
        counted = torch.tensor(value, device=self.device)
        dist.all_reduce(counted)
        return int(counted)

    def gather(self, rows: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(rows)], device=self.device))
        longest = max(int(n) for n in sizes)
        padded = rows.new_zeros(longest, *rows.shape[1:], device=self.device)
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.cat([part[: int(n)] for part, n in zip(parts, sizes)]).to(rows.device)

    def seed_by_rank(self, seed: int) -> None:
        if self.rank:
            torch.manual_seed(hash((seed, self.rank)) % 2**63)

    def all_reduce_max(self, value: int) -> int:
        most = torch.tensor(value, device=self.device)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def rank_zero_first(self, work: Callable[[], T], after: Callable[[], T]) -> T:
        result = None if self.rank else work()
        self.barrier()
        return after() if result is None else result

    def barrier(self) -> None:
        dist.barrier()


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective failed because another process ended: NCCL and the store have classes for it, gloo words."""
    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


class _Total(torch.autograd.Function):
    """The sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        out = grads[0].contiguous().clone()
        dist.all_reduce(out)
        return out


@contextmanager
def join(device: torch.device, shard_tables: bool) -> Iterator[World]:
    """The world of this process: NCCL between CUDA devices, gloo between CPUs, or a group that was joined before."""
    if dist.is_initialized():
        yield Ranks(device, shard_tables)
        return
    if not started_by_torchrun():
        yield World()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # torchrun keeps its store when it starts the processes again: without a prefix they may read the addresses of the
    # dead.
    store, rank, size = next(dist.rendezvous("env://", timeout=default_pg_timeout))
    store = dist.PrefixStore(f"attempt-{attempt()}", store)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield Ranks(device, shard_tables)
    finally:
        dist.destroy_process_group()
