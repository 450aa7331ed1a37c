"""What a run would take on W devices, without training: bytes per device, bytes sent per step, the slowest part.

Tables are planned, never made; the rest of the model is made, and one batch goes through it with vectors of zeros, so
lookups, activations, products and operations are counted, not guessed.

workload.py  the fields and a batch of them; load.py  bytes and seconds on any number of devices; machine.py  rates
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from recsys_emb.config import RunConfig
from recsys_emb.data.batches import Batch
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.distributed.load import Load, TableLoad
from recsys_emb.distributed.machine import MACHINES, USABLE, assumptions
from recsys_emb.distributed.tables import materialize
from recsys_emb.distributed.workload import Workload
from recsys_emb.embeddings.base import EmbeddingBackend, backend_registry
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.fields import group_spec
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel, build_model, model_registry
from recsys_emb.sizes import budget_bytes, human_bytes
from recsys_emb.training.optimizers import TABLE_OPTIMIZERS

SAMPLE_ROWS = 4096
"""Rows of a batch that are really computed; a larger batch is counted in proportion."""
MOST_FILLED, MOST_WEIGHTS = 1 << 28, 1 << 22
"""Bytes of arrays beside tables that a plan fills, and weights beside them that it computes with: it takes seconds."""
MOST_LOOKED = 1 << 28
"""Bytes of rows that a plan looks up in a table for its batch."""


def plan_run(config: RunConfig, workload: Workload, devices: int, memory: int) -> dict[str, Any]:
    """Where tables would go, what a device would hold and send, and what would be slowest.

    Args:
        config: of the run; its dataset is not looked at.
        workload: what a step sees.
        devices: W.
        memory: bytes of a device.

    Raises:
        UserError: model and fields do not fit together, a budget is out of reach, or the backend has more than
            MOST_FILLED bytes of arrays or MOST_WEIGHTS weights beside its tables.
    """
    schema = workload.schema
    kind = model_registry.get(config.model.name)
    kind.check(config.model, schema)
    spec = group_spec(schema, kind.embedding_width(config.model), config.embedding.init_std, kind.first_order)
    budget = budget_bytes(config.embedding.budget, spec.full_bytes)
    batch = workload.batch(min(-(-config.training.batch_size // devices), SAMPLE_ROWS))

    def load(name: str, options: Any = None) -> tuple[Load, int]:
        cls, sized = plan_backend(name, spec, budget, workload.stats, options)
        return _load(config, schema, cls(spec, sized, "meta"), batch)

    chosen, serving = load(config.embedding.backend, config.embedding.options)
    machine = MACHINES["cpu" if config.device == "cpu" else "cuda"]
    total = chosen.per_device(devices)
    seconds = chosen.seconds(devices, machine)
    return {
        "devices": devices,
        "device_memory": memory,
        "backend": config.embedding.backend,
        "model": config.model.name,
        "batch_size": config.training.batch_size,
        "ids": None if spec.hashed else spec.num_embeddings,
        "full_bytes": None if spec.hashed else spec.full_bytes,
        "budget_bytes": budget,
        "serving_bytes": serving,
        "fits": total["total"] <= memory * USABLE,
        "least_devices": chosen.least_devices(memory),
        "tables": [
            {
                "name": t.name,
                "placement": "row_wise",
                "rows": t.rows,
                "dim": t.dim,
                "rows_per_device": t.rows_on(devices),
                "bytes_per_device": t.rows_on(devices) * (t.row_bytes + t.state_bytes),
            }
            for t in chosen.tables
        ],
        "bytes_per_device": total,
        "sent_per_step": chosen.sent(devices),
        "seconds": seconds,
        "slowest": max(seconds, key=lambda k: seconds[k]),
        "rows_per_second": config.training.batch_size / sum(seconds.values()),
        "backends": list(_others(load, devices, memory)),
        "assumptions": [
            *workload.assumptions,
            f"a batch of {config.training.batch_size:,} rows over all devices; lookups, activations and operations are "
            f"counted in a forward of {len(batch):,} rows, in fp32; a step has twice its operations, three times its "
            "products",
            f"{config.training.embedding_optimizer} keeps {chosen.tables[0].state_bytes if chosen.tables else 0} bytes "
            "beside a row; row r of a table is on device r mod W, the rest of the model on every device",
            f"{USABLE:.0%} of a device's memory can be used",
            *assumptions(machine, devices),
        ],
    }


def _others(load: Callable[[str], tuple[Load, int]], devices: int, memory: int) -> Iterator[dict[str, Any]]:
    """The same run, under the same budget, on every backend with its default options."""
    for name in backend_registry.names():
        try:
            other, serving = load(name)
        except UserError as error:
            yield {"backend": name, "problem": str(error)}
        else:
            bytes_ = other.per_device(devices)["total"]
            least = other.least_devices(memory)
            yield {"backend": name, "serving_bytes": serving, "bytes_per_device": bytes_, "least_devices": least}


class _Vectors(EmbeddingTable):
    """Stands for a table of any size: notes what is looked up and gives zeros."""

    def __init__(self, table: EmbeddingTable) -> None:
        super().__init__(0, table.weight.shape[1], 0.0)
        self.num_rows, self.dim = table.num_rows, table.weight.shape[1]
        self.looked = self.distinct = 0

    def forward(self, rows: Tensor) -> Tensor:
        if (looked := 4 * rows.numel() * self.dim) > MOST_LOOKED:
            raise UserError(
                f"embedding.backend: a batch looks up {human_bytes(looked)} of rows; plan looks up at most "
                f"{human_bytes(MOST_LOOKED)}"
            )
        self.looked += rows.numel()
        self.distinct += len(rows.unique())
        return torch.zeros(*rows.shape, self.dim, requires_grad=True)


def _load(config: RunConfig, schema: DatasetSchema, backend: EmbeddingBackend[Any], batch: Batch) -> tuple[Load, int]:
    """The load of a backend in the form that is trained, and its serving bytes. Raises UserError, see MOST_FILLED."""
    serving = backend.serving_bytes()
    weights = sum(p.numel() for p in backend.parameters())
    weights -= sum(m.weight.numel() for m in backend.modules() if isinstance(m, EmbeddingTable))
    if (arrays := sum(buffer.nbytes for buffer in backend.buffers())) > MOST_FILLED:
        raise UserError(
            f"embedding.backend: {backend.name} keeps {human_bytes(arrays)} of numbers beside its tables; plan makes "
            f"at most {human_bytes(MOST_FILLED)} of them"
        )
    if weights > MOST_WEIGHTS:
        raise UserError(
            f"embedding.backend: {backend.name} computes vectors with {weights:,} weights; plan tries at most "
            f"{MOST_WEIGHTS:,}"
        )
    materialize(backend, torch.device("cpu"), _Vectors)
    model = build_model(config.model, schema, backend)
    saved, flops, operations = _forward(model, batch)
    n = len(batch)
    tables = [
        TableLoad(name, m.num_rows, m.dim, _state_bytes(config, m.dim), m.looked / n, m.distinct / n)
        for name, m in backend.named_modules()
        if isinstance(m, _Vectors)
    ]
    trained = sum(p.nbytes for p in model.parameters())
    copied = trained + sum(b.nbytes for b in model.buffers())
    # torch.optim.Adam, as ModelOptimizer has it: two moments.
    load = Load(tables, config.training.batch_size, copied, 2 * trained, trained, saved / n, flops / n, operations)
    return load, serving


def _state_bytes(config: RunConfig, dim: int) -> int:
    """Optimizer state of a row of a table."""
    rule = config.training.embedding_optimizer
    if rule not in TABLE_OPTIMIZERS:
        allowed = ", ".join(TABLE_OPTIMIZERS)
        raise UserError(f"training.embedding_optimizer: {rule} keeps whole tables on every device; allowed: {allowed}")
    return TABLE_OPTIMIZERS[rule](EmbeddingTable(1, dim, 0.0, "meta"), lr=1.0, l2=0.0).row_bytes


class _Operations(TorchDispatchMode):
    """Counts the operations that compute something; views cost little beside them."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def _forward(model: CTRModel, batch: Batch) -> tuple[int, int, int]:
    """Bytes that the forward of a batch keeps for its backward, its floating-point operations, its operations."""
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    model.train()
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        _Operations() as operations,
    ):
        model(batch)
    return sum(kept.values()), counter.get_total_flops(), operations.count
