"""Sizes as people read them."""

import pytest

from recsys_emb.sizes import human_bytes


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (2_162_560_000, "2.2 GB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_decimal_units(n, text):
    assert human_bytes(n) == text
