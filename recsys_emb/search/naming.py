"""What trials and winners are called: their method and what was drawn for them, in a few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recsys_emb.report.differences import short_names, written

WIDTHS = "embedding.options.widths."
_METHOD = ("model.name", "embedding.backend", "compact.method")
_SHOWN_WIDTHS = 8


def method_of(config: Mapping[str, Any]) -> str:
    """``"deepfm / qr"`` of a config as JSON keeps it; ``"deepfm / full+pq"`` where a post-training method follows."""
    made = config.get("compact")
    return f"{config['model']['name']} / {config['embedding']['backend']}" + (f"+{made['method']}" if made else "")


def drawn(params: Mapping[str, Any]) -> str:
    """What was drawn besides the method: ``"learning_rate=0.00679, widths 8 4 8 1"``.

    Args:
        params: values by the names that Optuna has for them (space.py); those of widths are so many that they are
            shown without their tables, or as their range.
    """
    widths = [value for name, value in params.items() if name.startswith(WIDTHS)]
    others = {
        name.split("[")[0]: value  # what is searched under one choice alone has that choice in brackets
        for name, value in params.items()
        if not name.startswith((WIDTHS, *_METHOD))
    }
    parts = [f"{short}={_written(others[name])}" for name, short in short_names(others).items()]
    if len(widths) > _SHOWN_WIDTHS:
        parts.append(f"{len(widths)} widths of {min(widths)} to {max(widths)}")
    elif widths:
        parts.append(f"widths {' '.join(map(str, widths))}")
    return ", ".join(parts)


def _written(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else written(value)
