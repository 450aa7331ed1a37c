"""What a run would take on W devices, without training: bytes per device, bytes sent per step, the slowest part.

Tables are planned, never made; the rest of the model is made, and one batch goes through it with vectors of zeros, so
lookups, activations and products are counted, not guessed. Times divide the counts by TorchRec's planner's bandwidths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchrec import KeyedJaggedTensor
from torchrec.distributed.planner import constants

from recsys_emb.config import RunConfig
from recsys_emb.data.batches import Batch, BatchLoader
from recsys_emb.data.schema import DatasetSchema
from recsys_emb.data.store import open_dataset
from recsys_emb.distributed.tables import materialize
from recsys_emb.embeddings.base import EmbeddingBackend, Stats, backend_registry
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.embeddings.fields import group_spec
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel, build_model, model_registry
from recsys_emb.sizes import budget_bytes
from recsys_emb.training.optimizers import TABLE_OPTIMIZERS

USABLE = 0.9
"""Share of a device's memory that tables, state and activations may take; buffers and the allocator need the rest."""
MOST_DEVICES = 1 << 16
SAMPLE_ROWS = 4096
"""Rows of a batch that are really computed; a larger batch is counted in proportion."""
ID_BYTES, FLOAT_BYTES = 8, 4
BACKWARD = 3
"""Products of a step over those of its forward: one for the output, two for the gradients."""


@dataclass(frozen=True)
class Machine:
    """Rates in bytes (or floating-point operations) a second, and devices of a host."""

    memory: float
    within_host: float
    between_hosts: float
    flops: float
    per_host: int = 8

    def network(self, devices: int) -> float:
        return self.within_host if devices <= self.per_host else self.between_hosts


MACHINES = {
    "cuda": Machine(
        constants.HBM_MEM_BW * 1e3, constants.INTRA_NODE_BANDWIDTH * 1e3, constants.CROSS_NODE_BANDWIDTH * 1e3, 60e12
    ),
    "cpu": Machine(
        constants.DDR_MEM_BW * 1e3, constants.CROSS_NODE_BANDWIDTH * 1e3, constants.CROSS_NODE_BANDWIDTH * 1e3, 0.2e12
    ),
}


@dataclass(frozen=True)
class Table:
    """A physical table.

    Attributes:
        name: its name in the backend.
        rows, dim: its shape.
        state_bytes: optimizer state of a row.
        looked, distinct: rows, and different rows, that a row of a batch looks up on average.
    """

    name: str
    rows: int
    dim: int
    state_bytes: int
    looked: float
    distinct: float

    @property
    def row_bytes(self) -> int:
        return self.dim * FLOAT_BYTES

    def rows_on(self, devices: int) -> int:
        """Of the device that holds most: row r is on device r mod W."""
        return -(-self.rows // devices)

    def asked(self, batch_rows: int) -> int:
        """Different rows that a device asks for."""
        return min(int(self.distinct * batch_rows), self.rows)


@dataclass(frozen=True)
class Load:
    """What a run takes, whatever the number of devices.

    Attributes:
        tables: split by rows.
        batch: rows of a batch over all devices.
        copied_bytes, copied_state_bytes: weights that every device has, and their optimizer state.
        averaged_bytes: gradients of those that are trained.
        activation_bytes, flops: of a batch's row in the forward.
    """

    tables: Sequence[Table]
    batch: int
    copied_bytes: int
    copied_state_bytes: int
    averaged_bytes: int
    activation_bytes: float
    flops: float

    def batch_rows(self, devices: int) -> int:
        return -(-self.batch // devices)

    def per_device(self, devices: int) -> dict[str, int]:
        """Bytes of the fullest device."""
        n = self.batch_rows(devices)
        # Vectors come and their gradients go; the distinct rows and gradients are there beside them.
        vectors = sum(2 * (int(t.looked * n) + t.asked(n)) * t.row_bytes for t in self.tables)
        parts = {
            "table_weights": sum(t.rows_on(devices) * t.row_bytes for t in self.tables),
            "table_optimizer": sum(t.rows_on(devices) * t.state_bytes for t in self.tables),
            "other_weights": self.copied_bytes + self.averaged_bytes,
            "other_optimizer": self.copied_state_bytes,
            "activations": int(self.activation_bytes * n) + vectors,
        }
        return {**parts, "total": sum(parts.values())}

    def sent(self, devices: int) -> dict[str, int]:
        """Bytes that a device sends in a step, on average; it receives as many."""
        n, away = self.batch_rows(devices), (devices - 1) / devices
        rows = int(sum(away * t.asked(n) * t.row_bytes for t in self.tables))
        parts = {
            "ids": int(sum(away * t.asked(n) for t in self.tables) * ID_BYTES),
            "rows": rows,
            "gradients": rows,
            "other_gradients": int(2 * away * self.averaged_bytes),  # a ring: reduced, then passed round
        }
        return {**parts, "total": sum(parts.values())}

    def seconds(self, devices: int, machine: Machine) -> dict[str, float]:
        """Of each part of a step, one after another."""
        n, sent, network = self.batch_rows(devices), self.sent(devices), machine.network(devices)
        updated = sum(2 * t.asked(n) * (t.row_bytes + t.state_bytes) for t in self.tables)
        vectors = sum(2 * t.looked * n * t.row_bytes for t in self.tables)
        return {
            "tables": (updated + vectors) / machine.memory,
            "exchange": (sent["ids"] + sent["rows"] + sent["gradients"]) / network,
            "dense": n * (BACKWARD * self.flops / machine.flops + 2 * self.activation_bytes / machine.memory),
            "other_gradients": sent["other_gradients"] / network,
        }

    def least_devices(self, memory: int) -> int | None:
        """The fewest devices on which the run fits; None where more do not help."""
        devices = 1
        while self.per_device(devices)["total"] > memory * USABLE:
            devices *= 2
            if devices > MOST_DEVICES:
                return None
        low = devices // 2 + 1
        return next(d for d in range(low, devices + 1) if self.per_device(d)["total"] <= memory * USABLE)


def plan_run(config: RunConfig, devices: int, memory: int, ids: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Where tables would go, what a device would hold and send, and what would be slowest.

    Args:
        config: of the run; its dataset gives the fields, and a batch.
        devices: W.
        memory: bytes of a device.
        ids: other sizes by the vocabulary's name; "" is every one that is not named. Lookups are then of random ids,
            which repeat as little as can be; with the dataset's own they are a batch of its training split.

    Raises:
        UserError: model and dataset do not fit together, a budget is out of reach, an unknown vocabulary.
    """
    dataset = open_dataset(config.data.path)
    schema = _resized(dataset.schema, ids)
    kind = model_registry.get(config.model.name)
    kind.check(config.model, schema)
    spec = group_spec(schema, kind.embedding_width(config.model), config.embedding.init_std, kind.first_order)
    stats: Stats = {}
    if not ids and schema.ids != "hash64":
        stats = {t.name: dataset.counts(t.name) for t in spec.tables}
    rows = -(-config.training.batch_size // devices)
    batch = next(iter(BatchLoader(dataset.split("train"), schema, min(rows, SAMPLE_ROWS), shuffle=True)))
    if ids:
        batch = _random_ids(batch, schema)

    def load(name: str, options: Any = None) -> tuple[Load, int]:
        budget = budget_bytes(config.embedding.budget, spec.full_bytes)
        cls, sized = plan_backend(name, spec, budget, stats, options)
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
        "ids": None if spec.hashed else spec.num_embeddings,
        "full_bytes": None if spec.hashed else spec.full_bytes,
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
    }


def _others(load: Any, devices: int, memory: int) -> Iterator[dict[str, Any]]:
    """The same run on every backend with its default options."""
    for name in backend_registry.names():
        try:
            other, serving = load(name)
        except UserError as error:
            yield {"backend": name, "problem": str(error)}
        else:
            bytes_ = other.per_device(devices)["total"]
            least = other.least_devices(memory)
            yield {"backend": name, "serving_bytes": serving, "bytes_per_device": bytes_, "least_devices": least}


def _resized(schema: DatasetSchema, ids: Mapping[str, int] | None) -> DatasetSchema:
    if not ids:
        return schema
    if schema.ids == "hash64":
        raise UserError("--ids-per-field: the dataset holds 63-bit hashes, so its fields have no sizes")
    own = schema.vocabularies
    unknown = next((name for name in ids if name and name not in own), None)
    if unknown is not None:
        raise UserError(f"--ids-per-field: no vocabulary {unknown!r}; allowed: {', '.join(own)}")
    sizes = {name: ids.get(name, ids.get("", size)) for name, size in own.items()}
    return schema.model_copy(update={"vocabularies": sizes})


def _random_ids(batch: Batch, schema: DatasetSchema) -> Batch:
    generator = torch.Generator().manual_seed(0)
    sizes = {f.name: schema.vocabularies[f.vocabulary] for f in schema.embedded}

    def drawn(kjt: KeyedJaggedTensor) -> KeyedJaggedTensor:
        counted = zip(kjt.keys(), kjt.length_per_key())
        values = torch.cat([torch.randint(sizes[key], (n,), generator=generator) for key, n in counted])
        return KeyedJaggedTensor(kjt.keys(), values, lengths=kjt.lengths(), stride=kjt.stride())

    sequences = None if batch.sequences is None else drawn(batch.sequences)
    return Batch(batch.dense, drawn(batch.sparse), sequences, batch.labels, batch.weights, batch.groups)


class _Vectors(EmbeddingTable):
    """Stands for a table of any size: notes what is looked up and gives zeros."""

    def __init__(self, table: EmbeddingTable) -> None:
        super().__init__(0, table.weight.shape[1], 0.0)
        self.num_rows, self.dim = table.num_rows, table.weight.shape[1]
        self.looked = self.distinct = 0

    def forward(self, rows: Tensor) -> Tensor:
        self.looked += rows.numel()
        self.distinct += len(rows.unique())
        return torch.zeros(*rows.shape, self.dim, requires_grad=True)


def _load(config: RunConfig, schema: DatasetSchema, backend: EmbeddingBackend[Any], batch: Batch) -> tuple[Load, int]:
    """The load of a backend in the form that is trained, and its serving bytes."""
    serving = backend.serving_bytes()
    materialize(backend, torch.device("cpu"), _Vectors)
    model = build_model(config.model, schema, backend)
    saved, flops = _forward(model, batch)
    n = len(batch)
    tables = [
        Table(name, m.num_rows, m.dim, _state_bytes(config, m.dim), m.looked / n, m.distinct / n)
        for name, m in backend.named_modules()
        if isinstance(m, _Vectors)
    ]
    trained = sum(p.nbytes for p in model.parameters())
    copied = trained + sum(b.nbytes for b in model.buffers())
    # torch.optim.Adam, as ModelOptimizer has it: two moments.
    load = Load(tables, config.training.batch_size, copied, 2 * trained, trained, saved / n, flops / n)
    return load, serving


def _state_bytes(config: RunConfig, dim: int) -> int:
    """Optimizer state of a row of a table."""
    rule = config.training.embedding_optimizer
    if rule not in TABLE_OPTIMIZERS:
        allowed = ", ".join(TABLE_OPTIMIZERS)
        raise UserError(f"training.embedding_optimizer: {rule} keeps whole tables on every device; allowed: {allowed}")
    return TABLE_OPTIMIZERS[rule](EmbeddingTable(1, dim, 0.0, "meta"), lr=1.0, l2=0.0).row_bytes


def _forward(model: CTRModel, batch: Batch) -> tuple[int, int]:
    """Bytes that the forward of a batch keeps for its backward, and its floating-point operations."""
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
    ):
        model(batch)
    return sum(kept.values()), counter.get_total_flops()
