"""Makes a shop's log to try things on: ``python datasets/shop/make.py`` writes ``shop.csv`` and ``tomorrow.csv``.

50,000 clicks of 1,000 users on 2,000 items, and 5,000 of the day after, half of whose users are new.
"""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import polars as pl

DAY = datetime.datetime(2026, 11, 20)


def main() -> None:
    shop_log(Path("shop.csv"), 50_000, 1, DAY - datetime.timedelta(minutes=50_000), range(1000), 2000)
    shop_log(Path("tomorrow.csv"), 5_000, 2, DAY, range(500, 1500), 2000)


def shop_log(
    path: Path, rows: int, seed: int, start: datetime.datetime, users: range, items: int = 60, minutes: float = 1
) -> Path:
    """Clicks of a shop: ISO times, prices with gaps, tags, the last items as pandas prints them, clicked Y or N.

    An item appeals to all alike, and a little more to users of one taste in four; its price shows the first in part.
    """
    random = np.random.default_rng(seed)
    appeal, noise = np.random.default_rng(0).normal(size=(2, items))  # the same on every day
    seen: dict[int, list[str]] = {}
    made = []
    for row in range(rows):
        user, item = int(users[random.integers(len(users))]), int(random.zipf(1.3) % items)
        history = seen.setdefault(user, [])
        logit = 1.5 * appeal[item] + 2 * (user % 4 == item % 4) - 1
        made.append(
            {
                "ts": (start + datetime.timedelta(minutes=minutes * row)).isoformat(timespec="seconds"),
                "session": f"s{seed}-{row}",
                "user_id": f"u{user}",
                "item": f"SKU-{item}",
                "price": "" if random.random() < 0.1 else f"{np.exp(2 + appeal[item] + noise[item]):.2f}",
                "tags": "|".join(f"t{t}" for t in sorted(random.choice(9, random.integers(0, 4), replace=False))),
                "last_items": str(history[-4:]),
                "device": ("ios", "android", "web")[random.integers(3)],
                "currency": "EUR",
                "clicked": "Y" if random.random() < 1 / (1 + np.exp(-logit)) else "N",
            }
        )
        history.append(f"SKU-{item}")
    pl.DataFrame(made).write_csv(path)
    return path


if __name__ == "__main__":
    main()
