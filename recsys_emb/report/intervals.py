"""How sure an AUC is, and the difference of two.

Standard errors of one run are DeLong's (``training/delong.py``): how much another test set of the same kind would move
the figure. Runs that differ by seed alone share the test set, so their mean has the error of one of them, and that of
drawing so few seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Z95 = 1.959964
"""Standard errors on either side of a normal distribution's middle 95 %."""


def error_of_mean(errors: Sequence[float | None], spread: float | None) -> float | None:
    """The standard error of a mean over seeds.

    Args:
        errors: of each run's figure, all on one test set.
        spread: sample standard deviation of the figure over the runs; None for a single one.

    Returns:
        None where an error is not known.
    """
    known = [error for error in errors if error is not None]
    if not known or len(known) < len(errors):
        return None
    of_test_set = sum(error**2 for error in known) / len(known)
    return math.sqrt(of_test_set + (spread or 0.0) ** 2 / len(known))


def half_width(error: float | None) -> float | None:
    """What a 95 % interval reaches to either side."""
    return None if error is None else Z95 * error
