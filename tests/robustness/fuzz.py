"""Many damaged files, drawn by hypothesis."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.robustness.damage import Damage, damages
from tests.robustness.readers import Reader

CALL = 1000
"""Cases of one call of hypothesis, which remembers them all."""


def try_many(reader: Reader, cases: int, first_seed: int = 0) -> Counter[str]:
    """How many of ``cases`` damaged files were read and how many refused; the least case that does neither raises."""
    tally: Counter[str] = Counter()

    def attempt(done: list[Damage], which: int) -> None:
        tally["refused" if reader.case(done, which) is None else "read"] += 1

    for number, begin in enumerate(range(0, cases, CALL)):
        drawn = given(damages, st.integers(0, 10_000))(attempt)
        drawn = settings(
            max_examples=min(CALL, cases - begin),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )(drawn)
        seed(first_seed + number)(drawn)()
    return tally
