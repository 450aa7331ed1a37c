"""mixed_dim and low_rank: widths against hand-computed cases, lookups against dense products."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys_emb.embeddings.backends.low_rank import LowRankBackend, LowRankConfig
from recsys_emb.embeddings.backends.mixed_dim import MixedDimBackend, MixedDimConfig, find_blocks
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import plan_backend
from recsys_emb.errors import UserError


def spec_of(*sizes: int, dim: int = 16) -> GroupSpec:
    return GroupSpec(tuple(TableSpec(f"t{i}", n) for i, n in enumerate(sizes)), dim)


@pytest.mark.parametrize(
    ("alpha", "power_of_two", "expected"),
    [
        (0.0, False, (16, 16, 16)),
        (0.5, False, (16, 5, 2)),  # 16 / sqrt(10), 16 / sqrt(100)
        (0.3, False, (16, 8, 4)),  # 16 / 2.00, 16 / 3.98
        (0.5, True, (16, 4, 2)),  # 5.06 -> 4, 1.6 -> 2
        (5.0, False, (16, 1, 1)),
    ],
)
def test_width_by_field_size(alpha: float, power_of_two: bool, expected: tuple[int, ...]) -> None:
    options = {"alpha": alpha, "round_to_power_of_two": power_of_two}
    _, config = plan_backend("mixed_dim", spec_of(1000, 10_000, 100_000), options=options)
    assert config.widths == tuple((w,) for w in expected)


def test_a_table_that_a_projection_would_not_shrink_stays_full() -> None:
    _, config = plan_backend("mixed_dim", spec_of(100, 12, 20), options={"alpha": 0.0, "by": "size"})
    assert config.widths == ((16,), (16,), (16,))
    _, config = plan_backend("low_rank", spec_of(1000, 1), budget=4 * (1016 + 16))
    assert config.ranks == (1, 16)  # a table of one id: 16 floats, rank 1 would be 17


def test_blocks_have_equal_traffic_and_widths_follow_their_mean_count() -> None:
    counts = np.array([0, 100, 100, *[10] * 20, *[1] * 200])
    blocks = find_blocks(spec_of(223), MixedDimConfig(blocks=3), {"t0": counts})
    assert [(b.begin, b.ids) for b in blocks] == [(0, 3), (3, 20), (23, 200)]
    assert [b.popularity for b in blocks] == pytest.approx([200 / 3, 10, 1])
    _, config = plan_backend(
        "mixed_dim", spec_of(223), None, {"t0": counts}, {"blocks": 3, "alpha": 0.5, "round_to_power_of_two": False}
    )
    # 16 * sqrt(10 * 3/200) = 6.2; 16 * sqrt(3/200) = 1.96; the first: 3 ids, so full
    assert config.widths == ((16, 6, 2),)


def test_popularity_needs_counts_that_fall_with_the_id() -> None:
    spec = spec_of(5)
    with pytest.raises(UserError, match="'t0' has no counts; use size"):
        plan_backend("mixed_dim", spec, options={"by": "popularity"})
    rising = {"t0": np.array([9, 1, 2, 3, 4])}
    with pytest.raises(UserError, match="the counts of 't0' do not fall with the id; use size"):
        plan_backend("mixed_dim", spec, None, rising, {"by": "popularity"})
    assert plan_backend("mixed_dim", spec, None, rising)[1].starts == ((0,),)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_the_budget_is_used(share: float, power_of_two: bool) -> None:
    spec = spec_of(*(int(1.9**k) + 1 for k in range(17)))
    stats = {t.name: 10**6 // np.arange(1, t.num_embeddings + 1) for t in spec.tables}
    budget = int(share * spec.full_bytes)
    cls, config = plan_backend("mixed_dim", spec, budget, stats, {"round_to_power_of_two": power_of_two})
    used = cls(spec, config, "meta").serving_bytes()
    assert (0.6 if power_of_two else 0.85) * budget < used <= budget
    widths = [w for table in config.widths for w in table]
    assert len(set(widths)) > 1
    if power_of_two:
        assert set(widths) <= {1, 2, 4, 8, 16}


def test_lookup_is_rows_times_the_blocks_own_projection() -> None:
    spec = spec_of(12, 40, dim=4)
    config = MixedDimConfig(starts=((0, 2, 6), (0, 10)), widths=((4, 2, 1), (2, 1)))
    backend = MixedDimBackend(spec, config)
    parts = backend.parts

    def dense(width: int, block: int, start: int, n: int) -> torch.Tensor:
        rows = parts[f"width_{width}"].table.weight[start : start + n]
        return rows if width == 4 else rows @ parts[f"width_{width}"].combine.weight[block]

    first = torch.cat([dense(4, 0, 0, 2), dense(2, 0, 0, 4), dense(1, 0, 0, 6)])
    second = torch.cat([dense(2, 1, 4, 10), dense(1, 1, 6, 30)])
    ids = torch.randint(0, 12, (50,))
    more = torch.randint(0, 40, (70,))
    out = backend(torch.cat([ids, more]), [50, 70])
    expected = torch.cat([first[ids], second[more]])
    torch.testing.assert_close(out, expected)
    scale = torch.randn_like(out)
    parameters = list(backend.parameters())
    ours = torch.autograd.grad((out * scale).sum(), parameters)
    theirs = torch.autograd.grad((expected * scale).sum(), parameters)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b)
    lines = backend.describe()
    assert [(x.table, x.ids, x.width) for x in lines][:3] == [("t0[0:2]", 2, 4), ("t0[2:6]", 4, 2), ("t0[6:12]", 6, 1)]


def test_low_rank_gives_one_rank_and_spends_the_rest_on_small_tables() -> None:
    spec = spec_of(20, 1000, 100_000)
    floats = 3 * (101_000 + 2 * 16) + 20 * 16  # rank 3 for the two large ones, the small one full
    _, config = plan_backend("low_rank", spec, 4 * floats)
    assert config.ranks == (16, 3, 3)
    _, config = plan_backend("low_rank", spec, 4 * (floats + 1016))
    assert config.ranks == (16, 4, 3)
    backend = LowRankBackend(spec, LowRankConfig(ranks=(16, 4, 3)))
    assert torch.linalg.matrix_rank(torch.cat(list(backend.rows(1)))) == 4
    assert backend.serving_bytes() == 4 * (floats + 1016)
