"""What mgqe does beyond dpq: rare ids have fewer codes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.backends._coded import CodedPart
from recsys_emb.embeddings.backends.mgqe import MGQEBackend
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.errors import UserError

SPEC = GroupSpec((TableSpec("item", 1000, init_std=0.5), TableSpec("day", 3), TableSpec("user", 301, init_std=0.5)), 8)
OPTIONS: dict[str, Any] = {"levels": 3, "bits": 3, "frequent": 0.1, "rare": 0.3}


def made() -> tuple[MGQEBackend, CodedPart]:
    torch.manual_seed(0)
    _, config = plan_backend("mgqe", SPEC, options=OPTIONS)
    backend = MGQEBackend(SPEC, config)  # type: ignore[arg-type]
    assert backend.coded is not None
    return backend, backend.coded


def test_rare_ids_use_the_first_codebook_only() -> None:
    backend, part = made()
    ids = torch.tensor([0, 99, 100, 999, 30, 31, 300])  # of 1,000 items 100 are frequent, of 301 users 31
    counts = [4, 0, 3]
    rows, books = part.table.weight.detach(), part.codebooks.books.detach()
    starts, frequent = {0: 0, 1: 1000}, [True, True, False, False, True, False, False]
    for vector, id_, of, many in zip(backend(ids, counts), ids.tolist(), [0] * 4 + [1] * 3, frequent):
        rest = rows[starts[of] + id_].clone()
        expected = torch.zeros(8)
        for level in range(3 if many else 1):
            cell = books[of, level][(books[of, level] - rest).square().sum(1).argmin()]
            expected, rest = expected + cell, rest - cell
        torch.testing.assert_close(vector.detach(), expected)


def test_codebooks_beyond_the_first_learn_from_frequent_ids_alone() -> None:
    backend, part = made()
    backend(torch.arange(100, 1000), [900, 0, 0]).sum().backward()
    grad = part.codebooks.books.grad
    assert grad is not None
    assert grad[0, 0].any()
    assert not grad[0, 1:].any()
    backend(torch.arange(100), [100, 0, 0]).sum().backward()
    assert grad[0, 1].any()
    assert grad[0, 2].any()


def test_bytes_are_those_of_each_groups_codes() -> None:
    backend, _ = made()
    codes = (375 + 2 * 38) + (113 + 2 * 12)  # of 3 bits: 1,000 and 100 items; 301 and 31 users
    expected = codes + 2 * 3 * (2 * 8 * 8) + 2 * 3 * 8  # codebooks of both, and three rows as they are
    assert backend.serving_bytes() == expected
    served = backend.compact()
    assert sum(t.nbytes for t in served.state_dict().values()) == expected
    for table in range(3):
        torch.testing.assert_close(next(served.rows(table)), next(backend.rows(table)))


def test_counts_that_do_not_fall_with_the_id_are_refused() -> None:
    falling = {t.name: np.arange(t.num_embeddings, 0, -1) for t in SPEC.tables}
    plan_backend("mgqe", SPEC, stats=falling)
    rising = {**falling, "user": np.arange(301)}
    with pytest.raises(UserError, match="mgqe needs counts that fall with the id; 'user' has others; use dpq"):
        plan_backend("mgqe", SPEC, stats=rising)


@pytest.mark.parametrize(
    ("options", "message"), [({"frequent": 0.0}, "frequent"), ({"rare": 1.5}, "rare"), ({"levels": 13}, "1 to 12")]
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_backend("mgqe", SPEC, options=options)
