"""A training whose rows move, on any number of processes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from recsys_emb.distributed.tables import ShardedTable
from recsys_emb.distributed.world import Ranks
from recsys_emb.embeddings.tables import EmbeddingTable, RowInit
from recsys_emb.quiet import quiet_torch
from recsys_emb.training.optimizers import TABLE_OPTIMIZERS

ROWS, DIM = 11, 3


def train(optimizer: str, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Steps in which rows move and are made anew: the table, its optimizer's state, and what was read on the way."""
    torch.manual_seed(3)
    init = [RowInit(4, 0.1), RowInit(7, 0.3)]
    whole = EmbeddingTable(ROWS, DIM, init, "cpu" if world == 1 else "meta")
    table = whole if world == 1 else ShardedTable(whole, torch.device("cpu"))
    if world > 1:
        table.reset_parameters()
    torch.manual_seed(rank + 9)  # from here on processes draw other numbers
    trained = TABLE_OPTIMIZERS[optimizer](table, 0.05, 1e-2)
    batches = torch.Generator().manual_seed(5)
    read = []
    for step in range(30):
        rows = torch.randint(ROWS, (6,), generator=batches)
        mine = rows[rank::world]
        (table(mine) * torch.sin(mine[:, None] + torch.arange(DIM) + step)).sum().mul(world).backward()
        trained.step()
        if step % 7 == 3:
            table.move(torch.tensor([0, 5, 8, 5]), torch.tensor([8, 0, 3, 10]))
        if step % 11 == 5:
            table.reset(torch.tensor([9, 2, 3]))
        if step % 6 == 1:
            read.append(table.current(torch.tensor([7, 2, 2, 10])))
    state = {"weight": table.gather(table.weight.detach()), "read": torch.stack(read), **trained.state_dict()}
    return {name: values.clone() for name, values in state.items()}


def fresh_copies(rank: int, processes: int) -> Tensor:
    """Rows made anew in a table of which every process has a copy, [processes, ROWS, DIM]."""
    torch.manual_seed(3)
    table = Ranks(torch.device("cpu"), shard_tables=False).prepare_model(EmbeddingTable(ROWS, DIM, 0.1))
    torch.manual_seed(rank)
    table.reset(torch.tensor([1, 5]))
    copies = [torch.empty(ROWS, DIM) for _ in range(processes)]
    dist.all_gather(copies, table.weight.detach())
    return torch.stack(copies)


def train_on(processes: int, out: Path) -> dict[str, dict[str, Tensor]]:
    """The same by every optimizer, as the first of several processes has it, and ``fresh_copies``."""
    mp.get_context("forkserver").set_forkserver_preload(["recsys_emb.distributed.tables"])
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (processes, folder, out), nprocs=processes, start_method="forkserver")
    return torch.load(out, weights_only=True)


def _rank(rank: int, processes: int, folder: str, out: Path) -> None:
    quiet_torch()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=processes)
    found = {name: train(name, rank, processes) for name in TABLE_OPTIMIZERS}
    found["copies"] = {"weight": fresh_copies(rank, processes)}
    if rank == 0:
        torch.save(found, out)
    dist.barrier()
    dist.destroy_process_group()
