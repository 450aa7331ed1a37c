"""What Prometheus reads of a server."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0)
ROWS = (1, 10, 100, 1000, 10_000, 100_000)


class Metrics:
    """Counters of one server; a registry of their own, so that a process may have several servers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        on, name = self.registry, "recsys_emb_{}".format
        self.requests = Counter(name("requests"), "Requests by path and status.", ["path", "status"], registry=on)
        self.seconds = Histogram(
            name("request_seconds"), "From a request to its answer.", ["path"], buckets=SECONDS, registry=on
        )
        self.batch_rows = Histogram(name("batch_rows"), "Rows predicted together.", buckets=ROWS, registry=on)
        self.reloads = Counter(name("reloads"), "Reloads by result.", ["result"], registry=on)
        self.loaded = Gauge(name("loaded_timestamp_seconds"), "When the artifact was loaded.", registry=on)
        self.serving_bytes = Gauge(name("serving_bytes"), "Bytes of the artifact's embedding.", registry=on)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
