"""The backends that every conformance test runs on: all that are listed, some with other options, and a plug-in."""

from __future__ import annotations

from typing import Any

import pytest

from recsys_emb.embeddings.base import backend_registry
from tests.plugin import Modulo

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("cce", {"chunks": 3}),
    ("dpq", {"variant": "sx"}),
    ("dpq", {"codes": "residual", "collapse": "linear"}),
    ("dpq", {"rotation": True, "bits": 2}),
    ("hash", {"balance": 1.0}),
    ("mgqe", {"levels": 4, "bits": 3, "rare": 0.25}),
    ("multi_hash", {"probes": 4}),
    ("multi_hash", {"importance": True}),
    ("pep", {"by": "row"}),
    ("pep", {"by": "value"}),
    ("qr", {"combine": "add", "partitions": 3}),
    ("qr", {"combine": "concat"}),
    ("unified", {"combine": "sum", "probes": 3}),
    ("unified", {"probes": 1}),
    ("mixed_dim", {"by": "size"}),
    ("mixed_dim", {"round_to_power_of_two": False, "blocks": 3}),
]
CASES = [(name, {}) for name in backend_registry.names()] + VARIANTS + [(Modulo.name, {})]
every_backend = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{o}" if o else n for n, o in CASES])
