"""How fast devices are, for estimates: bandwidths of TorchRec's planner, and what a step costs however small it is."""

from __future__ import annotations

from dataclasses import dataclass

from torchrec.distributed.planner import constants

USABLE = 0.9
"""Share of a device's memory that tables, state and activations may take; buffers and the allocator need the rest."""


@dataclass(frozen=True)
class Machine:
    """A device, and what joins it to others.

    Attributes:
        memory, within_host, between_hosts: bytes a second.
        flops: floating-point operations a second.
        launch: seconds that an operation takes before its work begins: Python, autograd, the start of a kernel.
            Steps of 8 rows on a CPU took 0.47 ms for 39 operations (lr), 0.73 for 67 (fm), 1.83 for 161 (fm on
            mixed_dim).
        latency_within_host, latency_between_hosts: seconds that a collective takes however little it sends.
        per_host: devices of a host.
    """

    memory: float
    within_host: float
    between_hosts: float
    flops: float
    launch: float = 0.0
    latency_within_host: float = 0.0
    latency_between_hosts: float = 0.0
    per_host: int = 8

    def network(self, devices: int) -> float:
        """Bytes a second between so many devices."""
        return self.within_host if devices <= self.per_host else self.between_hosts

    def latency(self, devices: int) -> float:
        """Seconds of a collective of so many devices."""
        if devices == 1:
            return 0.0
        return self.latency_within_host if devices <= self.per_host else self.latency_between_hosts


MACHINES = {
    "cuda": Machine(
        memory=constants.HBM_MEM_BW * 1e3,
        within_host=constants.INTRA_NODE_BANDWIDTH * 1e3,
        between_hosts=constants.CROSS_NODE_BANDWIDTH * 1e3,
        flops=60e12,
        launch=10e-6,
        latency_within_host=30e-6,
        latency_between_hosts=60e-6,
    ),
    "cpu": Machine(
        memory=constants.DDR_MEM_BW * 1e3,
        within_host=constants.CROSS_NODE_BANDWIDTH * 1e3,
        between_hosts=constants.CROSS_NODE_BANDWIDTH * 1e3,
        flops=0.2e12,
        launch=10e-6,
        latency_within_host=300e-6,
        latency_between_hosts=500e-6,
    ),
}
"""By the kind of device."""


def assumptions(machine: Machine, devices: int) -> list[str]:
    """What the times rest on, a sentence each."""
    where = "within a host" if devices <= machine.per_host else "between hosts"
    lines = [
        f"memory {machine.memory / 1e9:,.0f} GB/s (TorchRec's planner), products {machine.flops / 1e12:,g} TFLOP/s",
        f"an operation takes {machine.launch * 1e6:g} us to start, whatever its size",
    ]
    if devices > 1:
        lines.append(
            f"network {machine.network(devices) / 1e9:,.1f} GB/s {where} (TorchRec's planner), "
            f"{machine.latency(devices) * 1e6:g} us for a collective to begin; {machine.per_host} devices a host"
        )
    together = "the parts of a step follow one another, nothing is hidden behind anything else; batches lie ready"
    return [*lines, together]
