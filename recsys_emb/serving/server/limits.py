"""What a server takes of one request, and of all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds of a server.

    Attributes:
        body_bytes: of a request's body.
        rows: of a request.
        body_seconds: within which a body must have come.
        waiting: requests that may wait to be predicted; more are told to come back later.
    """

    body_bytes: int = 8 << 20
    rows: int = 10_000
    body_seconds: float = 10.0
    waiting: int = 1024
