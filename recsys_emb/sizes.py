"""How sizes are written and read: decimal units, 1 MB = 1,000,000 bytes, everywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from recsys_emb.errors import SettingError

MB = 1_000_000


@dataclass(frozen=True)
class TotalBudget:
    """Bytes of all that is served: embeddings, vocabularies and the rest of the model; a number or such as "20MB"."""

    total: int | str

    @property
    def bytes(self) -> int:
        size = None if isinstance(self.total, float) else budget_bytes(self.total, 0)
        if not size:
            raise SettingError("budget", f"total: {self.total!r} is not a size; allowed: bytes such as 2000000 or 20MB")
        return size


Budget = float | int | str | TotalBudget | None

_UNITS = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}
_SIZE = re.compile(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*([a-zA-Z]*)\s*")
_COUNT = re.compile(r"\s*((?:\d[\d_]*\.?\d*|\.\d+)(?:[eE]\+?\d{1,2})?)\s*([kKmMgGbB]?)\s*")
_TIMES = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "b": 1000**3}
_ALLOWED = "a ratio above 0 and up to 1 such as 0.1, or bytes such as 2000000 or 20MB"
_WRITTEN = ("B", "kB", "MB", "GB", "TB")


def human_bytes(n: float) -> str:
    """Bytes in the largest unit that leaves at least 1, one decimal: ``"12.3 MB"``, ``"512 B"``."""
    size = float(n)
    for unit in _WRITTEN[:-1]:
        if abs(size) < (999.95 if unit != "B" else 1000):  # 999.96 kB would round to 1000.0 kB
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_WRITTEN[-1]}"


def in_mb(n: int) -> str:
    """Bytes as a number of MB, to the thousandth or, below 0.01, to the byte: ``"2,162.560"``, ``"0.000300"``."""
    return f"{n / MB:,.3f}" if n >= 0.01 * MB else f"{n / MB:.6f}"


def budget_bytes(budget: Budget, full_bytes: int) -> int | None:
    """Bytes of a budget.

    Args:
        budget: a ratio to the full table above 0 and up to 1 (``0.1``), bytes (``2000000``), a size with a unit
            (``"20MB"``, ``"16MiB"``), or None for unbounded.
        full_bytes: bytes of the uncompressed fp32 tables.

    Raises:
        UserError: anything else.
    """
    if budget is None:
        return None
    allowed = _ALLOWED
    if isinstance(budget, TotalBudget):
        raise SettingError("budget", f"a total needs vocabularies and a network, which are not known here; {allowed}")
    if isinstance(budget, str):
        match = _SIZE.fullmatch(budget)
        unit = match[2].upper() if match else ""
        if match is None or (unit and unit not in _UNITS):
            raise SettingError("budget", f"{budget!r} is not a size; allowed: {allowed}")
        if unit:
            return int(float(match[1]) * _UNITS[unit])
        budget = float(match[1])
    if isinstance(budget, bool) or not budget > 0 or budget != budget or budget == float("inf"):
        raise SettingError("budget", f"{budget!r} is out of range; allowed: {allowed}")
    if budget <= 1:
        return int(budget * full_bytes)
    if budget != int(budget):
        raise SettingError("budget", f"{budget!r} is above 1 and no whole number of bytes; allowed: {allowed}")
    return int(budget)


def parse_budget(given: Any) -> Budget:
    """A budget as users write it: as for ``budget_bytes``, or ``{total: 20MB}``, in a command ``total=20MB``.

    Raises:
        SettingError: anything else.
    """
    if isinstance(given, str) and given.startswith("total="):
        given = {"total": given.removeprefix("total=")}
    if isinstance(given, Mapping):
        if given.keys() != {"total"} or type(given["total"]) not in (int, float, str):
            raise SettingError("budget", f"{dict(given)!r} is no budget; allowed: {_ALLOWED}, or {{total: 20MB}}")
        given = TotalBudget(given["total"])
    if isinstance(given, TotalBudget):
        _ = given.bytes
    else:
        budget_bytes(given, 1)
    return given


def written_budget(budget: Budget) -> Any:
    """A budget for JSON, which ``parse_budget`` reads."""
    return {"total": budget.total} if isinstance(budget, TotalBudget) else budget


def parse_count(text: str) -> int | None:
    """A whole number as people write it: ``200M``, ``5k``, ``2e8``, ``200_000_000``; None where it is none."""
    match = _COUNT.fullmatch(text)
    if match is None:
        return None
    number = Decimal(match[1].replace("_", "")) * _TIMES[match[2].lower()]
    return int(number) if number == int(number) else None
