"""What a step of a run takes on any number of devices: bytes held, bytes sent, seconds. Arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from recsys_emb.distributed.machine import USABLE, Machine

MOST_DEVICES = 1 << 16
ID_BYTES, FLOAT_BYTES = 8, 4
BACKWARD = 3
"""Products of a step over those of its forward: one for the output, two for the gradients."""
BACKWARD_OPERATIONS = 2
"""The same of operations: about as many in the backward (68 after 69 and 25 after 27 were counted)."""
TABLE_OPERATIONS = 15
"""Operations of a table's optimizer in a step (15 were counted): distinct rows, their gradients, the update."""
TABLE_COLLECTIVES = 5
"""Collectives of a table in a step (5 were counted): how many rows each asks of each, numbers, rows, gradients."""
STEP_COLLECTIVES = 3
"""Collectives of a step, whatever its tables: the mean loss, the other gradients, whether somebody asked to stop."""


@dataclass(frozen=True)
class TableLoad:
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
        """Rows on the device that holds most: row r is on device r mod W."""
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
        operations: of a forward, those that compute something, whatever the batch.
    """

    tables: Sequence[TableLoad]
    batch: int
    copied_bytes: int
    copied_state_bytes: int
    averaged_bytes: int
    activation_bytes: float
    flops: float
    operations: int = 0

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
        """Seconds of each part of a step, one after another; the last two are there however small the batch is."""
        n, sent, network = self.batch_rows(devices), self.sent(devices), machine.network(devices)
        updated = sum(2 * t.asked(n) * (t.row_bytes + t.state_bytes) for t in self.tables)
        vectors = sum(2 * t.looked * n * t.row_bytes for t in self.tables)
        operations = BACKWARD_OPERATIONS * self.operations + TABLE_OPERATIONS * len(self.tables)
        collectives = STEP_COLLECTIVES + TABLE_COLLECTIVES * len(self.tables)
        return {
            "tables": (updated + vectors) / machine.memory,
            "exchange": (sent["ids"] + sent["rows"] + sent["gradients"]) / network,
            "dense": n * (BACKWARD * self.flops / machine.flops + 2 * self.activation_bytes / machine.memory),
            "other_gradients": sent["other_gradients"] / network,
            "starting_operations": operations * machine.launch,
            "starting_collectives": collectives * machine.latency(devices),
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
