"""What cce computes: rows that ids point to and are hashed to, their bytes, and what a clustering leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.backends import _pointers
from recsys_emb.embeddings.backends._pointers import PointedRows
from recsys_emb.embeddings.backends.cce import CCEBackend, ClusteredPart
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.hashing import hash_ids, mix
from recsys_emb.errors import UserError
from recsys_emb.training.optimizers import TABLE_OPTIMIZERS

SPEC = GroupSpec((TableSpec("item", 1000, init_std=0.5), TableSpec("day", 3), TableSpec("user", 301, init_std=0.5)), 8)
OPTIONS: dict[str, Any] = {"chunks": 2, "rows": [[12, 20], [3], [4, 5]]}
COUNTS = [1000, 0, 301]
IDS = torch.cat([torch.arange(1000), torch.arange(301)])


def made(**options: Any) -> tuple[CCEBackend, ClusteredPart]:
    torch.manual_seed(0)
    _, config = plan_backend("cce", SPEC, options={**OPTIONS, **options})
    backend = CCEBackend(SPEC, config)  # type: ignore[arg-type]
    part = backend.parts["shared"]
    assert isinstance(part, ClusteredPart)
    return backend, part


def all_vectors(backend: CCEBackend) -> Tensor:
    return backend(IDS, COUNTS).detach()


# -- rows and bytes ---------------------------------------------------------------------------------------------------


def pointers_by_hand(rows: PointedRows) -> list[list[np.ndarray]]:
    """Each table's pointers of each chunk, read from the stream bit by bit."""
    bits, at, out = np.unpackbits(rows.stream.numpy(), bitorder="little"), 0, list[list[np.ndarray]]()
    for ids, (pointed, _) in zip(rows.sizes, rows.rows):
        out.append([])
        for _ in range(rows.chunks):
            found, shift, left = np.zeros(ids, int), 0, max(1, int(np.ceil(np.log2(pointed))))
            while left:
                width = min(left, 8)
                plane = bits[at : at + ids * width].reshape(ids, width) @ (1 << np.arange(width))
                found += plane << shift
                at += 8 * int(np.ceil(ids * width / 8))
                shift, left = shift + 8, left - width
            out[-1].append(found)
    assert at == len(bits)
    return out


def test_pointers_that_are_filled_some_at_a_time_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(700, 5), (3, 2)]  # of 10 and of 2 bits
    whole = PointedRows([1000, 301], rows, 2, seed=1, device=None)
    monkeypatch.setattr(_pointers, "AT_ONCE", 64)
    parts = PointedRows([1000, 301], rows, 2, seed=1, device=None)
    assert torch.equal(parts.stream, whole.stream)
    assert len(whole.stream.unique()) > 100


def test_a_vector_is_the_row_pointed_to_plus_the_hashed_one_chunk_by_chunk() -> None:
    backend, part = made()
    vectors, weight, rows = all_vectors(backend), part.table.weight.detach(), part.transform
    pointers = pointers_by_hand(rows)
    for table, chunk, id_ in [(0, 0, 0), (0, 1, 0), (0, 0, 999), (0, 1, 555), (1, 0, 0), (1, 1, 300)]:
        pointed, hashed = rows.rows[table]
        first = table * 2 * (12 + 20) + chunk * (pointed + hashed)
        other = int(hash_ids(torch.tensor([id_]), hashed, int(rows.seeds[table, chunk, 1])))
        expected = weight[first + pointers[table][chunk][id_]] + weight[first + pointed + other]
        torch.testing.assert_close(vectors[table * 1000 + id_, chunk * 4 : chunk * 4 + 4], expected)


def test_pointers_begin_as_hashes_that_reach_every_row_and_no_other() -> None:
    _, part = made()
    for table, chunks in enumerate(pointers_by_hand(part.transform)):
        for chunk in chunks:
            assert set(chunk) == set(range(part.transform.rows[table][0]))


@pytest.mark.parametrize(("pointed", "bits"), [(2, 1), (3, 2), (256, 8), (257, 9), (4096, 12), (65536, 16)])
def test_pointers_take_as_many_bits_as_rows_need(pointed: int, bits: int) -> None:
    rows = PointedRows([1003], [(pointed, 1)], 1, 0, "cpu")
    low, high = min(bits, 8), max(bits - 8, 0)
    assert len(rows.stream) == int(np.ceil(1003 * low / 8)) + int(np.ceil(1003 * high / 8))
    wanted = torch.randint(pointed, (1003,), generator=torch.Generator().manual_seed(1))
    wanted[:2] = torch.tensor([0, pointed - 1])
    rows.point(0, 0, wanted)
    ids = torch.arange(1003)
    assert torch.equal(rows.pointed(torch.zeros_like(ids), ids)[:, 0], wanted)
    assert torch.equal(torch.from_numpy(pointers_by_hand(rows)[0][0]), wanted)


def test_bytes_are_those_of_rows_and_packed_pointers() -> None:
    backend, _ = made()
    # Two chunks of 4 columns; pointers of 4 bits for 1,000 ids, of 2 for 301; a table of 3 rows of 8.
    expected = (2 * (500 + 4 * 4 * 32) + 1) + (2 * (76 + 4 * 4 * 9) + 1) + 4 * 3 * 8
    assert backend.serving_bytes() == expected
    assert sum(t.nbytes for t in backend.compact().state_dict().values()) == expected


# -- clustering -------------------------------------------------------------------------------------------------------


def groups_of_alike(part: ClusteredPart) -> None:
    """Gives item rows of few kinds: after it a chunk's vectors are sums of 4 and 3 values, 12 kinds in all."""
    with torch.no_grad():
        for chunk in range(2):
            first = chunk * 32
            kinds, more = torch.randn(4, 4), torch.randn(3, 4)
            part.table.weight[first : first + 12] = kinds.repeat(3, 1)
            part.table.weight[first + 12 : first + 32] = more.repeat(7, 1)[:20]


def test_a_clustering_that_has_a_row_for_every_kind_changes_no_vector() -> None:
    backend, part = made(rounds=50)
    groups_of_alike(part)
    before = all_vectors(backend)
    backend.after_epoch(0)
    torch.testing.assert_close(all_vectors(backend)[:1000], before[:1000], atol=1e-5, rtol=1e-5)


def by_brute_force(vectors: Tensor, centres: Tensor) -> Tensor:
    return (vectors[:, None] - centres).square().sum(2).argmin(1)


def test_every_id_points_to_the_nearest_centre_and_predicts_as_before_within_its_error() -> None:
    backend, part = made()
    before = all_vectors(backend)
    backend.after_epoch(0)
    after = all_vectors(backend)
    pointers = pointers_by_hand(part.transform)
    for table, ids in ((0, slice(0, 1000)), (1, slice(1000, 1301))):
        pointed, hashed = part.transform.rows[table]
        for chunk, columns in enumerate((slice(0, 4), slice(4, 8))):
            first = table * 64 + chunk * (pointed + hashed)
            rows = part.table.weight[first : first + pointed + hashed].detach()
            centres, shared = rows[:pointed], rows[pointed:]
            nearest = by_brute_force(before[ids, columns], centres)
            assert torch.equal(torch.from_numpy(pointers[table][chunk]), nearest)
            assert nearest.max() < pointed
            missed = before[ids, columns] - centres[nearest]
            seed = int(part.transform.seeds[table, chunk, 1]) ^ int(mix(torch.tensor(1)))
            hashes = hash_ids(torch.arange(len(missed)), hashed, seed)
            for row in range(hashed):  # hashed rows begin with the mean of what the centres lack
                torch.testing.assert_close(shared[row], missed[hashes == row].mean(0), atol=1e-6, rtol=1e-4)
            torch.testing.assert_close(after[ids, columns], centres[nearest] + shared[hashes])
            assert (after[ids, columns] - before[ids, columns]).square().sum() < missed.square().sum()
            assert missed.square().sum() < 0.8 * (before[ids, columns] - before[ids, columns].mean(0)).square().sum()


def test_ids_are_hashed_anew_and_no_full_table_moves() -> None:
    backend, part = made()
    ids, place = torch.arange(1000), torch.zeros(1000, dtype=torch.int64)
    before, day = part.transform(ids, [1000, 0]), backend(torch.arange(3), [0, 3, 0]).detach()
    assert torch.equal(
        before[:, 2:] - part.transform.starts[0], part.transform.hashed(place, ids, part.transform.rounds)
    )
    backend.after_epoch(0)
    assert part.transform.rounds.tolist() == [1, 1]
    after = part.transform(ids, [1000, 0])
    assert (after[:, 2:] == before[:, 2:]).float().mean() < 0.1  # one in 20 by chance
    assert len(after[:, 2].unique()) == 20
    assert torch.equal(backend(torch.arange(3), [0, 3, 0]), day)


def test_only_the_first_epochs_end_with_a_clustering() -> None:
    backend, part = made(clusterings=2)
    for epoch, clusters in enumerate([True, True, False]):
        with torch.no_grad():
            part.table.weight.normal_()
        before = part.table.weight.detach().clone()
        backend.after_epoch(epoch)
        assert torch.equal(part.table.weight, before) is not clusters


def test_rows_begin_anew_for_the_optimizer_and_vectors_are_those_caught_up() -> None:
    backend, part = made()
    part.table.sparse_grad = True
    optimizer = TABLE_OPTIMIZERS["adam"](part.table, 0.1, 0.01)
    for step in range(6):
        few = torch.arange(40) if step else torch.arange(1000)  # later steps leave rows behind
        backend(few, [len(few), 0, 0]).square().sum().backward()
        optimizer.step()
    lagging = part.table.weight.detach().clone()
    optimizer_view = part.table.current(torch.arange(64))
    assert not torch.equal(optimizer_view, lagging[:64])
    other, twin = made()
    with torch.no_grad():
        twin.table.weight[:64] = optimizer_view
        twin.table.weight[64:] = part.table.current(torch.arange(64, 82))
    backend.after_epoch(0)
    other.after_epoch(0)
    torch.testing.assert_close(part.table.current(torch.arange(82)), twin.table.weight.detach())
    assert torch.equal(part.transform.stream, twin.transform.stream)
    for state in optimizer.row_state():
        if state.is_floating_point():
            assert not state.any()


# -- sizes ------------------------------------------------------------------------------------------------------------


def test_half_of_a_share_at_most_goes_to_pointers() -> None:
    spec = GroupSpec((TableSpec("id", 100_000),), 8)
    _, config = plan_backend("cce", spec, 320_000)
    ((pointed, hashed),) = config.rows  # type: ignore[attr-defined]
    # 4 chunks: 3 bits take 150,000 of the 160,000 bytes, and 8 rows of 32 fit, too; 4 bits would take 200,000.
    assert (pointed, hashed) == (8, (320_000 - 150_000 - 8 * 32 - 1) // 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": 9}, "chunks: 9 is too many; allowed: 1 to 8"),
        ({"rows": [[2, 1], [3]]}, r"rows: one entry per table, 3, got 2"),
        ({"rows": [[1, 1], [3], [2, 1]]}, r"rows: \[1, 1\] for table 'item'; allowed: \[1000\], or 2 to 65,536"),
        ({"rows": [[2, 0], [3], [2, 1]]}, r"rows: \[2, 0\] for table 'item'"),
        ({"rows": [[2, 1], [4], [2, 1]]}, r"rows: \[4\] for table 'day'"),
        ({"clusterings": -1}, "clusterings"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan_backend("cce", SPEC, options=options)
    assert "\n" not in str(caught.value)
