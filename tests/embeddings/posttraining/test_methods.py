"""What is special to each post-training method, against independent computations."""

from __future__ import annotations

from typing import Any

import fbgemm_gpu  # noqa: F401  loads its operators
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.posttraining import compress
from recsys_emb.embeddings.posttraining._affine import quantise
from recsys_emb.embeddings.posttraining._csr import threshold
from recsys_emb.embeddings.posttraining._worth import Worth
from recsys_emb.embeddings.posttraining.base import ErrorCost
from recsys_emb.embeddings.posttraining.int4 import Int4Rows
from recsys_emb.errors import UserError
from tests.embeddings.posttraining.test_every_method import DIM, SIZES, SPEC, STATS, rows_of, trained

pytestmark = pytest.mark.usefixtures("exact_products")


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.9, 0.999])
def test_pruned_rows_are_the_dense_table_under_a_mask(sparsity: float) -> None:
    dense = torch.cat(rows_of(trained()))
    kept = dense.numel() - round(sparsity * dense.numel())
    limit = dense.abs().flatten().sort(descending=True).values[kept - 1]
    expected = torch.where(dense.abs() >= limit, dense, 0)
    made = compress(trained(), "prune", options={"sparsity": sparsity})
    assert torch.equal(torch.cat(rows_of(made)), expected)
    stored = made.state_dict()
    assert len(stored["stored.values"]) == kept
    assert stored["stored.columns"].dtype == stored["stored.lengths"].dtype == torch.uint8
    rows = expected.count_nonzero(1).count_nonzero().item()
    index = 12 * -(-len(dense) // 64)  # a bit an id, 64 in a word with a rank
    full, narrow = (5 * kept + 36 * -(-r // 32) for r in (len(dense), rows))
    assert made.serving_bytes() == min(full, narrow + min(index, 4 * rows))


@pytest.mark.parametrize("ratio", [0.6, 0.25, 0.05, 0.01, 0.002])
def test_a_budget_holds_the_largest_values_that_fit_with_their_indices(ratio: float) -> None:
    """Bytes of the K largest values are those of a table pruned to K; a brute force over all K."""
    budget = int(ratio * SPEC.full_bytes)
    dense = torch.cat(rows_of(trained()))
    order = dense.abs().flatten().argsort(descending=True).numpy() // DIM
    _, first = np.unique(order, return_index=True)
    filled = np.isin(np.arange(len(order)), first).cumsum()  # rows that the K largest values lie in
    index = np.minimum(12 * -(-len(dense) // 64), 4 * filled)
    values = 5 * np.arange(1, len(order) + 1)
    needed = values + np.minimum(36 * -(-len(dense) // 32), 36 * -(-filled // 32) + index)
    made = compress(trained(), "prune", budget, options={"structure": "elements"})
    assert len(made.state_dict()["stored.values"]) == np.searchsorted(needed, budget, side="right")
    assert [line.rows for line in made.describe() if line.table != "(shared)"] == list(made.config.rows)


@pytest.mark.parametrize(("dim", "columns", "lengths"), [(255, 1, 1), (256, 1, 2), (257, 2, 2)])
def test_indices_of_a_pruned_table_are_as_narrow_as_the_width_allows(dim: int, columns: int, lengths: int) -> None:
    backend = trained(GroupSpec((TableSpec("a", 40),), dim))
    made = compress(backend, "prune", options={"sparsity": 0})
    types = {item.name: item.dtype for item in made.storage()}
    assert types["stored.columns"].itemsize == columns
    assert types["stored.lengths"].itemsize == lengths
    assert torch.equal(rows_of(made)[0], rows_of(backend)[0])


@pytest.mark.parametrize("count", [1, 2, 1000, 46000, SPEC.num_embeddings * DIM])
def test_the_pruning_threshold_is_exact(count: int) -> None:
    bits, values, rows = threshold(trained(), lambda values, rows: values <= count, Worth(SPEC, None, None))
    dense = torch.cat(rows_of(trained())).abs()
    magnitudes = np.append(np.sort(dense.numpy().ravel())[::-1], 0)
    assert values == count
    assert np.int32(bits).view(np.float32) == magnitudes[count]  # the largest that goes
    assert rows == int((dense > magnitudes[count].item()).any(1).sum())


def test_pruning_among_equal_values_keeps_as_many_as_fit() -> None:
    backend = trained()
    with torch.no_grad():
        backend.table.weight.fill_(0.5)
        backend.table.weight[:10] = 0
    budget = SPEC.full_bytes // 4
    made = compress(backend, "prune", budget, options={"structure": "elements"})
    assert budget - 5 - 36 < made.serving_bytes() <= budget  # a value that begins a block of rows
    assert set(torch.cat(rows_of(made)).unique().tolist()) == {0.0, 0.5}
    everything = compress(backend, "prune", options={"sparsity": 0})
    assert len(everything.state_dict()["stored.values"]) == (SPEC.num_embeddings - 10) * DIM


def test_pruning_rows_and_columns_zeroes_the_weakest() -> None:
    budget = SPEC.full_bytes // 10
    before, after = (
        rows_of(trained()),
        rows_of(compress(trained(), "prune", budget, options={"structure": "rows_columns", "column_factor": 2})),
    )
    weakest_kept, strongest_dropped = [], []
    for old, new in zip(before, after):
        rows, columns = (new != 0).any(1), (new != 0).any(0)
        assert torch.equal(new, old * rows[:, None] * columns)
        for strength, kept in ((old.square().mean(1).sqrt(), rows), (old.square().mean(0).sqrt() / 2, columns)):
            if rows.any():
                weakest_kept += strength[kept].tolist()
                strongest_dropped += strength[~kept].tolist()
    assert max(strongest_dropped) <= min(weakest_kept)


@pytest.mark.parametrize(("strong", "chosen"), [("values", "elements"), ("column", "rows_columns")])
def test_pruning_takes_the_form_of_the_least_error(strong: str, chosen: str) -> None:
    backend = trained()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        weight = backend.table.weight.fill_(0.001)
        at = torch.randint(len(weight), (900,), generator=generator)
        weight[at, at % DIM if strong == "values" else 3] = 1 + torch.rand(900, generator=generator)
    budget = int(SPEC.full_bytes / 50)
    choices = [{"structure": "elements"}]
    choices += [{"structure": "rows_columns", "column_factor": f} for f in (1.0, 1.4, 2.0)]
    forms = [compress(backend, "prune", budget, options=choice) for choice in choices]
    errors = [sum((a - b).square().sum().item() for a, b in zip(rows_of(backend), rows_of(f))) for f in forms]
    best = forms[int(np.argmin(errors))]
    assert best.config.structure == chosen
    made = compress(backend, "prune", budget)
    assert made.config.model_copy(update={"structure": chosen}) == best.config
    assert all(torch.equal(a, b) for a, b in zip(rows_of(made), rows_of(best)))


def error_costs() -> dict[str, ErrorCost]:
    """Positive matrices [D, D] and worths of ids [N] that differ between tables, columns and ids."""
    generator = torch.Generator().manual_seed(3)
    roots = [torch.randn(DIM, DIM, dtype=torch.float64, generator=generator) * (1 + i) for i in range(len(SIZES))]
    relative = [torch.rand(size, generator=generator) + 0.5 for size in SIZES]
    return {t.name: ErrorCost(root.t() @ root, worth) for t, root, worth in zip(SPEC.tables, roots, relative)}


def test_pruning_keeps_the_values_whose_loss_would_cost_the_most() -> None:
    """By definition: of one value at a time, e S e^T times what its id counts."""
    given = error_costs()
    made = compress(trained(), "prune", 0.1, STATS, {"structure": "elements"}, sensitivity=lambda: given)
    kept, dropped = [], []
    for table, old, new in zip(SPEC.tables, rows_of(trained()), rows_of(made)):
        metric, relative = given[table.name]
        counts = (torch.from_numpy(STATS[table.name]) + 0.1) * relative
        cost = old.double().square() * counts[:, None] * metric.diagonal()
        kept += cost[new != 0].tolist()
        dropped += cost[new == 0].tolist()
    assert len(kept) > 1000
    assert max(dropped) <= min(kept) * 1.00001


@pytest.mark.parametrize("weighting", ["auto", "none"])
def test_of_several_pruned_forms_the_one_whose_errors_cost_least_is_taken(weighting: str) -> None:
    given = error_costs()
    choices = [{"structure": "elements"}]
    choices += [{"structure": "rows_columns", "column_factor": f} for f in (1.0, 1.4, 2.0)]
    for budget in (0.3, 0.05, 0.01):
        options = [{**choice, "weighting": weighting} for choice in choices]
        forms = [compress(trained(), "prune", budget, STATS, o, sensitivity=lambda: given) for o in options]
        costs = []
        for form in forms:
            cost = 0.0
            for table, old, new in zip(SPEC.tables, rows_of(trained()), rows_of(form)):
                error = (old - new).double().numpy()
                if weighting == "none":
                    cost += (error**2).sum()
                else:
                    metric, relative = (x.numpy() for x in given[table.name])
                    lookups = (STATS[table.name] + 0.1) * relative
                    cost += (lookups * np.einsum("ni,ij,nj->n", error, metric, error)).sum()
            costs.append(cost)
        made = compress(trained(), "prune", budget, STATS, {"weighting": weighting}, sensitivity=lambda: given)
        best = forms[int(np.argmin(costs))]
        assert all(torch.equal(a, b) for a, b in zip(rows_of(made), rows_of(best)))


@pytest.mark.parametrize("weighting", ["none", "counts"])
def test_svd_is_numpys(weighting: str) -> None:
    ranks = (3, DIM, 5, 1, DIM)
    made = compress(trained(), "svd", stats=STATS, options={"ranks": ranks, "weighting": weighting})
    for old, new, rank, table in zip(rows_of(trained()), rows_of(made), ranks, SPEC.tables):
        if rank == DIM:
            assert torch.equal(old, new)
            continue
        weights = np.sqrt(STATS[table.name].clip(min=1)) if weighting == "counts" else np.ones(len(old))
        u, s, vt = np.linalg.svd(old.double().numpy() * weights[:, None], full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank] / weights[:, None]
        assert_allclose(new.numpy(), best, atol=1e-6)


def test_svd_spends_a_budget_where_it_saves_the_most() -> None:
    """A table of rank 1 beside one without structure: the first needs no second rank."""
    spec = GroupSpec((TableSpec("flat", 500), TableSpec("rich", 500)), 8)
    backend = trained(spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        backend.table.weight[:500] = torch.randn(500, 1, generator=generator) * torch.randn(8, generator=generator)
        backend.table.weight[500:] = torch.randn(500, 8, generator=generator)
    made = compress(backend, "svd", 0.5)
    assert made.config.ranks == (1, 6)
    torch.testing.assert_close(rows_of(made)[0], rows_of(backend)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ranks", [(0, 1, 1, 1, 1), (1, 1, 1, 1, DIM + 1), (1, 1)])
def test_svd_ranks_out_of_range(ranks: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="ranks"):
        compress(trained(), "svd", options={"ranks": ranks})


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_svd_is_numpys_factors_rounded(bits: int) -> None:
    rank = 6
    made = compress(trained(), "quantized_svd", options={"rank": rank, "bits": bits, "weighting": "none"})
    for old, new in zip(rows_of(trained()), rows_of(made)):
        if len(old) < 20:  # codes, scales and a basis would take more than the rows
            assert torch.equal(old, new)
            continue
        u, s, vt = np.linalg.svd(old.double().numpy(), full_matrices=False)
        factor = (u * s)[:, :rank]
        largest = 2 ** (bits - 1) - 1
        scale = (np.abs(factor).max(1, keepdims=True) / largest).astype(np.float32).astype(np.float16).astype(float)
        rounded = np.clip(np.rint(factor / scale), -largest - 1, largest) * scale
        # where a value lies half way between two codes, the last bit of a factor decides
        assert (np.abs(new.numpy() - rounded @ vt[:rank]).max(1) < 1e-6).mean() > 0.99


def test_quantized_svd_takes_the_largest_rank_that_fits() -> None:
    n, dim = 1000, 16
    spec = GroupSpec((TableSpec("t", n),), dim)
    for rank in (1, 4, 9):
        needed = n * (-(-rank // 2) + 2) + 4 * rank * dim
        assert compress(trained(spec), "quantized_svd", f"{needed}B").config.rank == rank
    with pytest.raises(UserError, match="least it can reach is 3,064 bytes"):
        compress(trained(spec), "quantized_svd", "3063B")
    with pytest.raises(UserError, match="rank: 17; allowed: 1 to 16"):
        compress(trained(spec), "quantized_svd", options={"rank": 17})


def test_int8_is_fbgemms() -> None:
    rows = torch.cat(rows_of(trained()))
    fused = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows)
    expected = torch.ops.fbgemm.Fused8BitRowwiseQuantizedToFloat(fused)
    made = compress(trained(), "int8")
    assert made.serving_bytes() == fused.nbytes
    difference = (torch.cat(rows_of(made)) - expected).abs()
    step = (rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)) / 255
    assert (difference <= 1.01 * step).all()  # values half way between two codes: it multiplies by 1 / (scale + 1e-8)
    assert (difference < 1e-7).float().mean() > 0.999


@pytest.mark.parametrize(("name", "bits"), [("int8", 8), ("int4", 4)])
@pytest.mark.parametrize("scales", ["fp32", "fp16"])
@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-6])  # of the values: scales above and below the least normal fp16
def test_affine_rows_are_within_half_a_step(name: str, bits: int, scales: str, size: float) -> None:
    backend, most = trained(), 2**bits - 1
    with torch.no_grad():
        backend.table.weight.mul_(size)
    before = torch.cat(rows_of(backend)).double()
    options = {"scales": scales} | ({"clip_search": False} if bits == 4 else {})
    after = torch.cat(rows_of(compress(backend, name, options=options))).double()
    low = before.amin(1).abs()
    step = (before.amax(1) - before.amin(1)) / most
    error, tiny = (2**-11, 2**-25) if scales == "fp16" else (2**-24, 0)  # of rounding to the type of the scales
    scale = step * (1 + error) + tiny
    bound = scale / 2 + most * (scale * error + tiny) + low * error + tiny
    # The sums in float32 have errors of their own; at fp32's range there is little else.
    assert ((after - before).abs().amax(1) <= 1.001 * bound + 2**-22 * before.abs().amax(1)).all()


def test_symmetric_codes_by_hand() -> None:
    rows = torch.tensor([[0.0, 7.0, -7.0, 1.4]])
    codes, scale, bias = quantise(rows, 4, True, torch.float32)
    assert codes.tolist() == [[8, 15, 1, 9]]
    assert scale.tolist() == [1.0]
    assert bias.tolist() == [-8.0]


def test_affine_codes_by_hand() -> None:
    codes, scale, bias = quantise(torch.tensor([[1.0, 16.0, 2.4, 2.6], [3.0] * 4]), 4, False, torch.float32)
    assert codes.tolist() == [[0, 15, 1, 2], [0, 0, 0, 0]]
    assert scale.tolist() == [1.0, 1.0]
    assert bias.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("dim", [1, 2, 7, 16])
def test_int4_codes_survive_packing(dim: int) -> None:
    codes = torch.randint(0, 16, (50, dim), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = Int4Rows.pack(codes)
    assert packed.shape == (50, (dim + 1) // 2)
    assert torch.equal(Int4Rows.unpack(packed, dim), codes)
    assert int(packed[0, 0]) & 15 == int(codes[0, 0])


def test_searching_the_range_lowers_the_error_of_int4() -> None:
    backend = trained()
    with torch.no_grad():
        backend.table.weight.normal_(generator=torch.Generator().manual_seed(0)).pow_(3)
    before = torch.cat(rows_of(backend))
    errors = [
        (torch.cat(rows_of(compress(backend, "int4", options={"clip_search": s}))) - before).square().sum(1)
        for s in (False, True)
    ]
    assert (errors[1] <= errors[0] * 1.00001).all()
    assert errors[1].sum() < 0.95 * errors[0].sum()


def test_fp16_is_torchs_half() -> None:
    expected = torch.cat(rows_of(trained())).half().float()
    assert torch.equal(torch.cat(rows_of(compress(trained(), "fp16"))), expected)


@pytest.mark.parametrize("size", [1.0, 2**-14, 2**-20, 2**-30])
def test_fp16_errors_are_relative_down_to_the_least_normal_number(size: float) -> None:
    backend = trained()
    with torch.no_grad():
        backend.table.weight.mul_(size)
    before, after = (torch.cat(rows_of(b)).double() for b in (backend, compress(backend, "fp16")))
    bound = torch.where(before.abs() >= 2**-14, before.abs() * 2**-11, 2**-25)
    assert ((after - before).abs() <= bound).all()


def test_fp16_of_values_beyond_its_range_stays_finite() -> None:
    backend = trained()
    with torch.no_grad():
        backend.table.weight[0] = 1e6
    assert rows_of(compress(backend, "fp16"))[0][0].tolist() == [65504.0] * DIM


@pytest.mark.parametrize("sorted_counts", [True, False])
def test_dropped_rows_become_the_out_of_vocabulary_row(sorted_counts: bool) -> None:
    generator = np.random.default_rng(0)
    stats = {t.name: generator.poisson(1, t.num_embeddings) for t in SPEC.tables}
    if sorted_counts:
        stats = {name: np.sort(counts)[::-1].copy() for name, counts in stats.items()}
    made = compress(trained(), "drop_unseen", stats=stats)
    assert (made.index is None) is sorted_counts
    for old, new, table in zip(rows_of(trained()), rows_of(made), SPEC.tables):
        seen = torch.from_numpy(stats[table.name] > 0)
        expected = torch.where(seen[:, None], old, old[0])
        assert torch.equal(new, expected)
    kept = sum(max(1, int((c[1:] > 0).sum()) + 1) for c in stats.values())
    bitmap = 12 * -(-sum(SIZES) // 64)
    assert made.serving_bytes() == kept * 4 * DIM + (0 if sorted_counts else bitmap)


def test_seldom_rows_merge_into_their_mean_by_counts() -> None:
    spec = GroupSpec((TableSpec("a", 5),), 2)
    backend = trained(spec)
    with torch.no_grad():
        backend.table.weight.copy_(torch.tensor([[1.0, 0.0], [9, 9], [8, 8], [3, 3], [6, 0]]))
    made = compress(backend, "drop_unseen", stats={"a": np.array([1, 7, 5, 2, 1])}, options={"min_count": 3})
    merged = [(1 * 1 + 2 * 3 + 1 * 6) / 4, (2 * 3) / 4]
    assert rows_of(made)[0].tolist() == [merged, [9, 9], [8, 8], merged, merged]


def test_drop_unseen_finds_the_least_count_that_fits() -> None:
    budget = SPEC.full_bytes // 3
    made = compress(trained(), "drop_unseen", budget, STATS)
    least = made.config.min_count
    assert least > 1
    with pytest.raises(UserError, match="the least it can reach"):
        compress(trained(), "drop_unseen", budget, STATS, {"min_count": least - 1})


def test_drop_unseen_needs_counts() -> None:
    with pytest.raises(UserError, match="counts of every id, and 't3' has none"):
        compress(trained(), "drop_unseen", stats={k: v for k, v in STATS.items() if k != "t3"})


def test_a_sparsity_and_a_budget_exclude_each_other() -> None:
    with pytest.raises(UserError, match="sparsity: a budget decides it already"):
        compress(trained(), "prune", 0.1, options={"sparsity": 0.5})


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "prune",
            {"rows": [1, 1, 1, 1]},
            r"options.rows: prune finds it by itself; allowed: column_factor, sparsity, structure, weighting$",
        ),
        (
            "drop_unseen",
            {"rows": [1] * 4},
            r"options.rows: drop_unseen finds it by itself; allowed: min_count$",
        ),
    ],
)
def test_what_is_fitted_cannot_be_given(method: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compress(trained(), method, 0.5, STATS, options)


def test_sizes_are_what_the_docstrings_say() -> None:
    n = sum(SIZES)
    assert compress(trained(), "fp16").serving_bytes() == 2 * n * DIM
    assert compress(trained(), "int8").serving_bytes() == n * (DIM + 8)
    assert compress(trained(), "int8", options={"range": "symmetric"}).serving_bytes() == n * (DIM + 4)
    assert compress(trained(), "int4").serving_bytes() == n * ((DIM + 1) // 2 + 4)


def test_a_clipped_range_by_hand() -> None:
    """Half of 0..15 is 3.75..11.25; what is outside goes to its ends."""
    codes, scale, bias = quantise(torch.tensor([[0.0, 15.0, 7.25]]), 4, False, torch.float32, clips=(0.5,))
    assert codes.tolist() == [[0, 15, 7]]
    assert scale.tolist() == [0.5]
    assert bias.tolist() == [3.75]
