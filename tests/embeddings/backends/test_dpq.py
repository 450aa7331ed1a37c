"""What dpq computes: cells, their gradients, codes and bytes, each against a calculation of the test's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.backends._coded import CodedPart
from recsys_emb.embeddings.backends.dpq import DPQBackend
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.posttraining.pq import PQ
from recsys_emb.errors import UserError

SPEC = GroupSpec((TableSpec("item", 1000, init_std=0.5), TableSpec("day", 3), TableSpec("user", 301, init_std=0.5)), 8)
TWO_COLUMNS = GroupSpec((TableSpec("a", 50),), 2)


def made(spec: GroupSpec = SPEC, **options: Any) -> tuple[DPQBackend, CodedPart]:
    torch.manual_seed(0)
    _, config = plan_backend("dpq", spec, None, None, options)
    backend = DPQBackend(spec, config)  # type: ignore[arg-type]
    assert backend.coded is not None
    return backend, backend.coded


def with_cells(cells: list[list[float]], rows: list[list[float]], **options: Any) -> tuple[DPQBackend, CodedPart]:
    """Two columns, codes of one bit, one level: these cells, and the rows of the first ids."""
    backend, part = made(TWO_COLUMNS, levels=1, bits=1, **options)
    with torch.no_grad():
        part.codebooks.books.copy_(torch.tensor(cells).view(1, 1, 2, 2))
        part.table.weight[: len(rows)] = torch.tensor(rows)
    return backend, part


# -- gradients by hand ------------------------------------------------------------------------------------------------

CELLS, ROWS = [[0.0, 0.0], [1.0, 1.0]], [[0.25, 0.0], [1.0, 0.5], [0.75, 1.0]]
SCALE = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])


def test_a_rows_nearest_cell_is_looked_up_and_both_have_its_gradient() -> None:
    backend, part = with_cells(CELLS, ROWS)
    vectors = backend(torch.tensor([0, 1, 2]), [3])
    torch.testing.assert_close(vectors, torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))
    (vectors * SCALE).sum().backward()
    assert part.table.weight.grad is not None
    assert part.codebooks.books.grad is not None
    torch.testing.assert_close(part.table.weight.grad[:3], SCALE)
    assert not part.table.weight.grad[3:].any()
    torch.testing.assert_close(part.codebooks.books.grad[0, 0], torch.tensor([[1.0, 2.0], [10.0, 16.0]]))


def test_rows_and_cells_are_drawn_to_each_other() -> None:
    backend, part = with_cells(CELLS, ROWS, commitment=0.5)
    backend(torch.tensor([0, 1, 2]), [3])
    loss = backend.aux_loss()
    assert loss is not None
    # Squared distances 1/16, 1/4, 1/16; their mean times 1 + 0.5.
    assert loss.item() == pytest.approx(1.5 * 0.375 / 3)
    loss.backward()
    missed = torch.tensor([[0.25, 0.0], [0.0, -0.5], [-0.25, 0.0]])  # row - cell
    assert part.table.weight.grad is not None
    assert part.codebooks.books.grad is not None
    torch.testing.assert_close(part.table.weight.grad[:3], 0.5 * 2 * missed / 3)
    to_rows = torch.stack([-2 * missed[0] / 3, -2 * (missed[1] + missed[2]) / 3])
    torch.testing.assert_close(part.codebooks.books.grad[0, 0], to_rows)


def test_each_coded_table_has_its_part_of_what_draws_rows_and_cells() -> None:
    backend, part = made(levels=1, bits=2)  # two coded tables, and a plain one
    vectors = backend(torch.tensor([5, 1, 7, 8]), [1, 1, 2])
    rows = part.table.weight[[5, 1007, 1008]]
    missed = (rows - vectors[[0, 2, 3]]).square().sum(1).mean()
    loss = backend.aux_loss()
    assert loss is not None
    assert loss.item() == pytest.approx(2 * 1.25 * missed.item(), rel=1e-5)


def test_sx_takes_the_value_of_the_largest_product_and_learns_by_the_softmax() -> None:
    backend, part = with_cells([[5.0, -1.0], [2.0, 4.0]], ROWS[:1], variant="sx")
    keys, values, query, scale = np.array([[3.0, 0.0], [-1.0, 2.0]]), CELLS, np.array(ROWS[0]), np.array([1.0, 2.0])
    with torch.no_grad():
        assert part.codebooks.keys is not None
        part.codebooks.keys.copy_(torch.tensor(keys).view(1, 1, 2, 2))
        part.codebooks.books.copy_(torch.tensor(values).view(1, 1, 2, 2))
    vectors = backend(torch.tensor([0]), [1])
    torch.testing.assert_close(vectors, torch.tensor([values[0]]))  # products 0.75 and -0.25
    (vectors * torch.tensor(scale, dtype=torch.float32)).sum().backward()
    s = np.exp(keys @ query) / np.exp(keys @ query).sum()
    to_s = np.array(values) @ scale
    to_products = s * (to_s - s @ to_s)
    assert part.table.weight.grad is not None
    grads = [x.grad for x in (part.codebooks.keys, part.codebooks.books)]
    np.testing.assert_allclose(part.table.weight.grad[0], to_products @ keys, rtol=1e-5)
    for grad, expected in zip(grads, (np.outer(to_products, query), [scale, [0.0, 0.0]])):
        assert grad is not None
        np.testing.assert_allclose(grad[0, 0], expected, rtol=1e-5)
    assert backend.aux_loss() is None


# -- codes and bytes --------------------------------------------------------------------------------------------------


def bits_of(stream: Tensor, codes: int, bits: int) -> np.ndarray:
    flat = np.unpackbits(stream.numpy(), bitorder="little")[: codes * bits].reshape(codes, bits)
    return flat @ (1 << np.arange(bits))


def by_brute_force(part: CodedPart, table: int, rotation: np.ndarray | None = None) -> np.ndarray:
    """Each row's codes, [N, L]: one row, one level, one cell after another."""
    cells = part.codebooks.stored()[table].half().double().numpy()
    rows = part.table.weight.split(list(part.rows or []))[table].double().numpy()
    rows = rows if rotation is None else rows @ rotation.T
    product, levels, dim = part.codebooks.product, len(part.columns), rows.shape[1]
    out = np.empty((len(rows), levels), int)
    for i, row in enumerate(rows):
        rest = row.copy()
        for level in range(levels):
            columns = slice(level * dim // levels, (level + 1) * dim // levels) if product else slice(None)
            book = cells[0 if product else level][:, columns]
            out[i, level] = min(range(len(book)), key=lambda k: ((rest[columns] - book[k]) ** 2).sum())
            rest[columns] -= book[out[i, level]]
    return out


@pytest.mark.parametrize("options", [{}, {"codes": "residual"}, {"rotation": True}, {"collapse": "linear"}])
def test_packed_codes_are_those_of_brute_force(options: dict[str, Any]) -> None:
    backend, part = made(levels=3, bits=3, **options)
    rotation = None
    with torch.no_grad():
        if part.codebooks.turn is not None:
            part.codebooks.turn.normal_()
        if part.codebooks.map is not None:
            part.codebooks.map.add_(torch.randn_like(part.codebooks.map), alpha=0.3)
        part.codebooks.eval()
        if part.codebooks.turn is not None:
            rotation = part.codebooks.rotation().double().numpy()
            torch.testing.assert_close(
                torch.tensor(rotation[0] @ rotation[0].T), torch.eye(8).double(), atol=2e-3, rtol=0
            )
        expected = [by_brute_force(part, t, None if rotation is None else rotation[t]) for t in range(2)]
    served = backend.compact()
    at = 0
    for codes in expected:
        for level in range(3):
            size = -(-len(codes) * 3 // 8)
            found = bits_of(served.codes[at : at + size], len(codes), 3)
            assert (found == codes[:, level]).mean() > (0.99 if rotation is not None else 0.9999)  # halves turn rows
            at += size
    assert at == len(served.codes)


def test_bytes_are_those_of_packed_codes_and_float16_codebooks() -> None:
    # Codes: 2 levels of 3 bits, 375 bytes of 1,000 ids each, 113 of 301; 8 cells of 8 columns; a table of 3 rows.
    plain, cells = 2 * 3 * 8, 2 * 8 * 8
    codes = 2 * 375 + 2 * 113
    for options, expected in (
        ({}, codes + 2 * cells + plain),
        ({"codes": "residual"}, codes + 4 * cells + plain),
        ({"rotation": True}, codes + 2 * cells + 2 * 2 * 8 * 9 + plain),
        ({"variant": "sx"}, codes + 2 * cells + plain),
        ({"collapse": "linear"}, codes + 2 * cells + plain),
    ):
        backend, _ = made(levels=2, bits=3, **options)
        served = backend.compact()
        assert isinstance(served, PQ)
        assert backend.serving_bytes() == served.serving_bytes() == expected
        assert sum(t.nbytes for t in served.state_dict().values()) == expected


def test_a_budget_is_spent_on_codes_and_then_on_whole_tables() -> None:
    sizes = []
    for budget in (900, 2000, 6000, 10_000, SPEC.full_bytes // 2):
        cls, config = plan_backend("dpq", SPEC, budget)
        sizes.append(cls(SPEC, config, "meta").serving_bytes())
        assert 0.8 * budget < sizes[-1] <= budget
    assert sizes[-1] == SPEC.full_bytes // 2
    assert all(form.width == 0 for form in config.tables)  # type: ignore[attr-defined]


def test_evaluation_sees_what_is_served() -> None:
    backend, part = made(levels=2, bits=4)
    ids, counts = torch.arange(40), [20, 0, 20]
    trained = backend(ids % 20, counts)
    with torch.no_grad():
        part.codebooks.books.add_(1e-5)  # less than float16 tells apart
    before = backend.eval()(ids % 20, counts)
    assert not torch.equal(trained, before)
    assert torch.equal(backend.compact()(ids % 20, counts), before)
    assert not backend.training
    assert backend.train().compact() is not None
    assert backend.training


# -- cells that nobody takes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("collapse", "revived"), [("reset", True), ("ignore", False)])
def test_a_dead_cell_becomes_a_row_that_was_looked_up(collapse: str, revived: bool) -> None:
    backend, part = with_cells([[0.0, 0.0], [90.0, 90.0]], ROWS, collapse=collapse, reset_every=2)
    for step in range(2):
        backend(torch.tensor([1, 1]), [2])
        assert part.codebooks.books[0, 0, 1].tolist() == [90.0, 90.0]
        backend.after_step(step)
    assert (part.codebooks.books[0, 0, 1].tolist() == ROWS[1]) is revived
    assert part.codebooks.books[0, 0, 0].tolist() == [0.0, 0.0]  # which was taken
    assert not part.codebooks.used.any()


@pytest.mark.parametrize("options", [{}, {"rotation": True}])
def test_revived_cells_make_up_a_row_that_was_looked_up(options: dict[str, Any]) -> None:
    backend, part = made(levels=2, bits=2, reset_every=1, **options)
    with torch.no_grad():
        if part.codebooks.turn is not None:
            part.codebooks.turn.normal_()
        part.codebooks.books[:, :, 3] = 1e4
    item = torch.full((5,), 17)
    backend(item, [5, 0, 0])
    backend.after_step(0)
    assert part.codebooks.books[0].abs().max() < 100
    torch.testing.assert_close(backend(item, [5, 0, 0]).detach()[0], part.table.weight[17].detach())
    assert part.codebooks.books[1].abs().max() > 100  # no row of the other table was looked up


def test_a_revived_cell_of_a_residual_code_is_what_the_levels_before_leave() -> None:
    backend, part = made(levels=2, bits=2, reset_every=1, codes="residual")
    with torch.no_grad():
        part.codebooks.books[0, :, 3] = 1e4
    row, first = part.table.weight[17].detach(), part.codebooks.books[0, 0, :3].detach().clone()
    backend(torch.tensor([17, 17]), [2, 0, 0])
    backend.after_step(0)
    torch.testing.assert_close(part.codebooks.books[0, 0, 3].detach(), row)
    nearest = first[(first - row).square().sum(1).argmin()]
    torch.testing.assert_close(part.codebooks.books[0, 1, 3].detach(), row - nearest)


def test_cells_behind_a_linear_map_stay_and_the_map_learns() -> None:
    _, part = made(levels=2, bits=2, collapse="linear")
    assert {name for name, _ in part.codebooks.named_parameters()} == {"map"}
    torch.testing.assert_close(part.codebooks.stored(), part.codebooks.fixed)
    with torch.no_grad():
        part.codebooks.map.mul_(2)  # type: ignore[union-attr]
    torch.testing.assert_close(part.codebooks.stored(), 2 * part.codebooks.fixed)


# -- what is refused --------------------------------------------------------------------------------------------------

GOOD = [{"width": 8, "bits": [3], "ids": [1000]}, {"width": 0, "ids": [3]}, {"width": 8, "bits": [3], "ids": [301]}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 9}, r"levels: 9 is too many; allowed: 1 to 8"),
        ({"bits": 9}, r"bits"),
        ({"codes": "residual", "variant": "sx"}, r"codes: residual goes with variant vq; sx takes product"),
        ({"codes": "residual", "rotation": True}, r"rotation: goes with product codes"),
        ({"variant": "sx", "collapse": "reset"}, r"collapse: goes with variant vq"),
        ({"tables": GOOD[:2]}, r"tables: one entry per table, 3, got 2"),
        ({"tables": [{**GOOD[0], "ids": [999]}, *GOOD[1:]]}, r"tables: .* for table 'item'; allowed: .*ids \[1000\]"),
        ({"tables": [{**GOOD[0], "width": 4}, *GOOD[1:]]}, r"tables: .* for table 'item'; allowed: width 0 or 8"),
        ({"tables": [{**GOOD[0], "bits": [2]}, *GOOD[1:]]}, r"tables: .* for table 'item'; .*the same bits"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plan_backend("dpq", SPEC, options=options)
    assert "\n" not in str(caught.value)


def test_sizes_given_by_hand_are_taken() -> None:
    backend, _ = made(tables=GOOD)
    assert backend.serving_bytes() == 375 + 113 + 2 * 2 * 8 * 8 + 48
