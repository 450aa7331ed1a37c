"""How sizes are written: decimal units, 1 MB = 1,000,000 bytes, everywhere."""

from __future__ import annotations

MB = 1_000_000

_UNITS = ("B", "kB", "MB", "GB", "TB")


def human_bytes(n: float) -> str:
    """Bytes in the largest unit that leaves at least 1, one decimal: ``"12.3 MB"``, ``"512 B"``."""
    size = float(n)
    for unit in _UNITS[:-1]:
        if abs(size) < (999.95 if unit != "B" else 1000):  # 999.96 kB would round to 1000.0 kB
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"
