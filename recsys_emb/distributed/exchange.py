"""TorchRec brings rows to whoever looks them up; what a process does with its own rows is a function of ours.

TorchRec's planner says who holds which rows, and its sharded EmbeddingCollection sends row numbers to the holders, and
rows and gradients back. Its kernels for the rows that a process holds are FBGEMM's, which have no Adam on the CPU and
none that catches up anywhere, so the collection here has a customized kernel, one that TorchRec keeps no state for: our
table, with our optimizers.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder, ShardedEmbeddingCollection
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.sharding.rw_sequence_sharding import RwSequenceEmbeddingSharding
from torchrec.distributed.types import ParameterSharding, ShardingEnv, ShardingType

from recsys_emb.distributed.launch import local_size
from recsys_emb.errors import UserError

Held = Callable[[Tensor], Tensor]
"""Numbers of rows that this process holds, int64 [n], counted from its first -> float [n, D]."""

NAME = "rows"
"""The name of a collection's only table and feature."""

RESERVED = 0.1
"""Share of a device's memory that the planner leaves to everything but tables."""


class RowExchange:
    """Looks rows up wherever they are. Row r of ``rows`` is held by process ``r // (rows / W)``.

    Args:
        rows: of the whole table, a multiple of the processes' number W.
        dim: columns of a row.
        held: looks up the rows of this process.
        device: of this process.

    Raises:
        UserError: the planner finds no room for the table.
    """

    def __init__(self, rows: int, dim: int, held: Held, device: torch.device) -> None:
        self.rows = rows
        collection = EmbeddingCollection(
            [EmbeddingConfig(name=NAME, num_embeddings=rows, embedding_dim=dim, feature_names=[NAME])],
            device=torch.device("meta"),
        )
        sharder = _Sharder()
        with _quiet():
            planner = EmbeddingShardingPlanner(
                topology=_topology(device), storage_reservation=FixedPercentageStorageReservation(RESERVED)
            )
            try:
                plan = planner.collective_plan(collection, [sharder], _world())
            except PlannerError as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"a table of {rows:,} rows of {dim} floats does not fit on {dist.get_world_size()} devices "
                    f"({reason}); use more of them, or a smaller embedding.budget"
                ) from None
            env = ShardingEnv.from_process_group(_world())
            self._sharded = sharder.shard(collection, dict(plan.plan[""]), env, device)
        for lookup in self._sharded._lookups:
            lookup.held = held

    def __call__(self, rows: Tensor) -> Tensor:
        """Row numbers int64 [n], which may differ in length between processes -> float [n, D]."""
        lengths = torch.tensor([len(rows)], device=rows.device)
        looked = self._sharded(KeyedJaggedTensor([NAME], rows, lengths=lengths, stride=1))
        return cast(Tensor, looked[NAME].values())


class _Lookup(nn.Module):
    """What TorchRec calls with the numbers of our rows that other processes, and this one, ask for."""

    held: Held

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        return self.held(features.values()).view(-1)

    def named_parameters_by_table(self) -> Iterator[tuple[str, nn.Parameter]]:
        return iter(())


class _Sharding(RwSequenceEmbeddingSharding):
    def create_lookup(self, *args: Any, **kwargs: Any) -> Any:
        return _Lookup()


class _ShardedCollection(ShardedEmbeddingCollection):
    @classmethod
    def create_embedding_sharding(  # type: ignore[override]
        cls, sharding_type: str, sharding_infos: Any, env: ShardingEnv, device: Any = None, **kwargs: Any
    ) -> _Sharding:
        return _Sharding(sharding_infos, env, device)

    def reset_parameters(self) -> None:
        """There are none here."""


class _Sharder(EmbeddingCollectionSharder):
    """Splits a table by rows and leaves them to our kernel."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        return [ShardingType.ROW_WISE.value]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        return [EmbeddingComputeKernel.FUSED.value]  # the one whose costs the planner knows that is most like ours

    def shard(
        self,
        module: EmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedEmbeddingCollection:
        for sharding in params.values():
            sharding.compute_kernel = EmbeddingComputeKernel.CUSTOMIZED_KERNEL.value
        return _ShardedCollection(module, params, env, device=device)


def _world() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


def _topology(device: torch.device) -> Topology:
    world, local = dist.get_world_size(), local_size()
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // local
    on_card = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else 0
    return Topology(world, device.type, hbm_cap=on_card, ddr_cap=host, local_world_size=local)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without TorchRec's advice on how to measure the machine."""
    logger = logging.getLogger("torchrec")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
