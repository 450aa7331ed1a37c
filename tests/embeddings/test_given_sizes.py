"""Sizes that the user gives instead of a budget: those that fit the tables are taken, all others name the table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recsys_emb.data.schema import HASHED_IDS
from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.errors import UserError

SPEC = GroupSpec((TableSpec("user", 100), TableSpec("item", 30), TableSpec("day", 7)), 8)
HASHED = GroupSpec((TableSpec("user", HASHED_IDS, hashed=True), TableSpec("item", HASHED_IDS, hashed=True)), 8)

GOOD: list[tuple[str, dict[str, Any], int]] = [  # and the floats that they take
    ("hash", {"rows": [50, 1, 7]}, 58 * 8),
    ("multi_hash", {"rows": [100, 2, 3]}, 105 * 8),
    ("multi_hash", {"rows": [100, 2, 3], "importance": True}, 105 * 8 + 2 * 37),
    ("unified", {"rows": 13}, 13 * 4),
    ("robe", {"floats": 64}, 64),
    (
        "cafe",
        {"rows": [10, 30, 1], "owners": 20},
        (10 + 30 + 1 + 20) * 8 + 2 * 3,
    ),  # and 12 bytes for each 64 of 107 ids
    ("dhe", {"layers": 2, "hashes": 5, "hidden": 3}, 3 * (5 + 4) + 3 * (3 + 4) + (3 + 1) * 8),
    ("adapt_emb", {"rows": [10, 30, 1], "own": [50, 0, 2]}, (60 + 30 + 3) * 8),
    ("tt_rec", {"ranks": [0, 2, 1]}, 100 * 8 + (5 * 2 * 2 + 2 * 2 * 2 * 2 + 3 * 2 * 2) + (2 + 2 + 2) * 2),
    ("qr", {"radices": [[10, 10], [30], [1, 7]]}, (20 + 30 + 8) * 8),
    ("qr", {"radices": [[5, 5, 4], [2, 5, 3], [7]]}, (14 + 10 + 7) * 8),
    ("low_rank", {"ranks": [8, 3, 1]}, 100 * 8 + (30 + 8) * 3 + (7 + 8)),
    ("mixed_dim", {"widths": [[8], [3], [1]]}, 100 * 8 + (30 + 8) * 3 + (7 + 8)),
    (
        "mixed_dim",
        {"starts": [[0, 40], [0, 1, 29], [0]], "widths": [[8, 2], [1, 2, 1], [8]]},
        40 * 8 + (60 + 8) * 2 + (1 + 8) + (28 + 8) * 2 + (1 + 8) + 7 * 8,
    ),
    ("optembed", {"bytes": 2000}, 500),
    ("field_dim", {"widths": {"user": 8, "item": 0, "day": 2}}, 814),
]
good = pytest.mark.parametrize(("name", "options", "floats"), GOOD)


@good
def test_sizes_that_fit_are_taken(name: str, options: dict[str, Any], floats: int) -> None:
    cls, config = plan_backend(name, SPEC, options=options)
    backend = cls(SPEC, config)
    counts = [t.num_embeddings for t in SPEC.tables]
    vectors = backend.eval().lookup(torch.cat([torch.arange(n) for n in counts]), counts)
    assert vectors.shape == (137, 8)
    assert backend.serving_bytes() == 4 * floats


@good
def test_a_budget_holds_for_given_sizes_too(name: str, options: dict[str, Any], floats: int) -> None:
    plan_backend(name, SPEC, 4 * floats, options=options)
    with pytest.raises(
        UserError, match=rf"{name} cannot fit in {4 * floats - 1:,} bytes; the least it can reach is {4 * floats:,}"
    ):
        plan_backend(name, SPEC, 4 * floats - 1, options=options)


BAD: list[tuple[str, dict[str, Any], str]] = [
    *(
        (name, {"rows": rows}, message)
        for name in ("hash", "multi_hash")
        for rows, message in [
            ([50, 1], r"rows: one entry per table, 3, got 2"),
            ([], r"rows: one entry per table, 3, got 0"),
            ([50, 0, 7], r"rows: 0 for table 'item'; allowed: 1 to 30"),
            ([50, 1, -1], r"rows: -1 for table 'day'; allowed: 1 to 7"),
            ([101, 1, 7], r"rows: 101 for table 'user'; allowed: 1 to 100"),
        ]
    ),
    ("unified", {"rows": 0}, r"rows: .* greater than or equal to 1, got 0"),
    ("qr", {"radices": [[10, 10], [30]]}, r"radices: one entry per table, 3, got 2"),
    ("qr", {"radices": [[9, 11], [30], [7]]}, r"radices: \[9, 11\] for table 'user'; .* product is at least 100"),
    (
        "qr",
        {"radices": [[10, 10], [29], [7]]},
        r"radices: \[29\] for table 'item'; allowed: \[30\], or 2 numbers",
    ),
    ("qr", {"radices": [[10, 10], [31], [7]]}, r"radices: \[31\] for table 'item'"),
    (
        "qr",
        {"radices": [[10, 10], [30], []]},
        r"radices: \[\] for table 'day'; allowed: \[7\], or 2 numbers",
    ),
    ("qr", {"radices": [[10, 10], [2, 5, 3], [7]]}, r"radices: \[10, 10\] for table 'user'; .* 3 numbers"),
    ("qr", {"radices": [[-10, -10], [30], [7]]}, r"radices: \[-10, -10\] for table 'user'"),
    ("qr", {"radices": [[1000, 1], [30], [7]]}, r"radices: \[1000, 1\] for table 'user'; .* from 1 to 100"),
    ("qr", {"radices": [[2] * 9, [30], [7]]}, r"radices: \[2, .*\] for table 'user'; allowed: \[100\], or 8 numbers"),
    ("qr", {"radices": [[10, 10], [30], [7]], "partitions": 3}, r"radices: \[10, 10\] for .*user.* 3 numbers"),
    ("low_rank", {"ranks": [8, 3]}, r"ranks: one entry per table, 3, got 2"),
    ("low_rank", {"ranks": [8, 0, 1]}, r"ranks: 0 for table 'item'; allowed: 1 to 8"),
    ("low_rank", {"ranks": [9, 1, 1]}, r"ranks: 9 for table 'user'; allowed: 1 to 8"),
    ("tt_rec", {"ranks": [8, 3]}, r"ranks: one entry per table, 3, got 2"),
    ("tt_rec", {"ranks": [8, 3, -1]}, r"ranks.2: .* greater than or equal to 0, got -1"),
    ("mixed_dim", {"widths": [[8], [3]]}, r"widths: one entry per table, 3, got 2"),
    ("mixed_dim", {"widths": [[8], [9], [1]]}, r"widths: \[9\] for table 'item'; allowed: one of 1 to 8 for each of 1"),
    ("mixed_dim", {"widths": [[8], [0], [1]]}, r"widths: \[0\] for table 'item'"),
    (
        "mixed_dim",
        {"widths": [[8, 2], [1], [1]]},
        r"widths: \[8, 2\] for table 'user'; allowed: one of 1 to 8 for each of 1",
    ),
    ("mixed_dim", {"starts": [[0], [0], [0]]}, r"starts: missing widths"),
    ("mixed_dim", {"starts": [[0]], "widths": [[8], [1], [1]]}, r"starts: one entry per table, 3, got 1"),
    (
        "mixed_dim",
        {"starts": [[0], [1], [0]], "widths": [[8], [1], [1]]},
        r"starts: \[1\] for table 'item'; .* 30",
    ),
    ("mixed_dim", {"starts": [[0], [], [0]], "widths": [[8], [], [1]]}, r"starts: \[\] for table 'item'"),
    ("mixed_dim", {"starts": [[0, 5, 5], [0], [0]], "widths": [[8, 4, 2], [1], [1]]}, r"starts: \[0, 5, 5\] for table"),
    ("mixed_dim", {"starts": [[0], [0], [0, 7]], "widths": [[8], [1], [4, 1]]}, r"starts: \[0, 7\] for .*, below 7"),
    (
        "mixed_dim",
        {"starts": [[0, 5], [0], [0]], "widths": [[8], [1], [1]]},
        r"widths: \[8\] .*1 to 8 for each of 2",
    ),
    ("optembed", {"bytes": 23}, r"bytes: 23 bytes; allowed: 24 to 4,384"),
    ("optembed", {"bytes": 4385}, r"bytes: 4,385 bytes; allowed: 24 to 4,384"),
    ("field_dim", {"widths": {"user": 9}}, r"widths.user: 9 is too wide; allowed: 0 to 8"),
    ("matryoshka", {"widths": {"nobody": 1}}, r"widths.nobody: no such table; allowed: user, item, day"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD)
def test_sizes_that_do_not_fit_name_the_option_the_table_and_what_is_allowed(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"^options\.{message}") as error:
        plan_backend(name, SPEC, options=options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hash", {"rows": [5, (1 << 31) + 1]}, r"rows: 2147483649 for table 'item'; allowed: 1 to 2,147,483,648"),
        (
            "qr",
            {"modulus": 100, "radices": [[10, 10], [100]]},
            r"radices: \[100\] for table 'item'; .*: 2 numbers",
        ),
        ("qr", {"radices": [[10, 10], [10, 10]]}, "modulus: missing"),
        ("multi_hash", {"rows": [5, 5], "importance": True}, "importance: needs the list of ids"),
        ("multi_hash", {"importance": True}, "importance: needs the list of ids"),
    ],
)
def test_sizes_of_hashed_ids(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^options\.{message}"):
        plan_backend(name, HASHED, 10**6, options=options)


def test_ranks_of_a_decomposition() -> None:
    cls, config = plan_backend("full", SPEC)
    trained = cls(SPEC, config)
    for ranks, message in (([8, 3], "one entry per table"), ([8, 9, 1], "9 for table 'item'; allowed: 1 to 8")):
        with pytest.raises(UserError, match=rf"^options\.ranks: {message}"):
            compress(trained, "svd", options={"ranks": ranks})
    assert compress(trained, "svd", options={"ranks": [8, 3, 1]}).serving_bytes() == 4 * (800 + 38 * 3 + 15)
