"""What a command sets before torch is imported, so that it need not import it."""

from __future__ import annotations

import logging


def quiet_torch() -> None:
    """Drops torch's log line about fx tracing that every use of a KeyedJaggedTensor triggers; it means nothing here."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
