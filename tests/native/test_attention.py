"""Attention in C++ against plain tensor algebra in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from recsys_emb.models.attention import MultiHeadSelfAttention
from recsys_emb.native import attention as native

needs_compiler = pytest.mark.skipif(
    not native.fits(torch.zeros(1, 1, 24), 1), reason="no C++ compiler, or a processor without AVX2"
)


def exact(projected: Tensor, heads: int, scale: float) -> Tensor:
    query, key, value = projected.double().unflatten(2, (3, heads, -1)).unbind(2)  # [B, F, heads, head_dim]
    weights = torch.softmax(scale * torch.einsum("bihd,bjhd->bhij", query, key), dim=-1)
    return torch.einsum("bhij,bjhd->bihd", weights, value).flatten(2)


@needs_compiler
@pytest.mark.parametrize("fields", [1, 2, 7, 8, 9, 39, 40])
@pytest.mark.parametrize(("heads", "dim"), [(1, 8), (2, 32), (3, 16), (1, 40), (2, 48), (1, 56), (1, 72)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_values_and_gradients(fields: int, heads: int, dim: int, scale: float) -> None:
    projected = torch.randn(5, fields, 3 * heads * dim, requires_grad=True)
    upstream = torch.randn(fields, 5, heads * dim).transpose(0, 1)  # not contiguous
    out, wanted = native.Attend.apply(projected, heads, scale), exact(projected, heads, scale)
    torch.testing.assert_close(out.double(), wanted, rtol=1e-5, atol=1e-5)
    mine, theirs = (torch.autograd.grad(o, projected, upstream.to(o.dtype))[0] for o in (out, wanted))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(native.Attend.apply(projected, heads, scale), out, rtol=0, atol=0)


@needs_compiler
def test_no_rows_and_rows_that_are_not_contiguous() -> None:
    assert native.Attend.apply(torch.zeros(0, 5, 24), 1, 1.0).shape == (0, 5, 8)
    projected = torch.randn(5, 3, 24).transpose(0, 1)
    wanted = exact(projected, 1, 1.0).float()
    torch.testing.assert_close(native.Attend.apply(projected, 1, 1.0), wanted, rtol=1e-5, atol=1e-5)


@needs_compiler
def test_any_number_of_threads_gives_the_same_bits() -> None:
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = torch.linspace(-1, 1, 11 * 6 * 48).view(11, 6, 48).requires_grad_()
        out = native.Attend.apply(leaf, 2, 1.0)
        out.square().sum().backward()
        results.append((out, leaf.grad))
    torch.set_num_threads(before)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@needs_compiler
@pytest.mark.parametrize("size", [1e2, 1e4, 1e18])
def test_scores_of_any_size(size: float) -> None:
    projected = torch.randn(4, 9, 24) * size
    wanted = exact(projected.double(), 1, 1.0).float()
    torch.testing.assert_close(native.Attend.apply(projected, 1, 1.0), wanted, rtol=1e-2, atol=1e-5 * size)


@needs_compiler
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("column", [0, 8, 16])
def test_what_diverged_shows(bad: float, column: int) -> None:
    """Whether it is a query, a key or a value."""
    projected = torch.randn(2, 9, 24)
    projected[0, 8, column] = bad
    out = native.Attend.apply(projected, 1, 1.0)
    assert not out[0].isfinite().all()
    assert out[1].isfinite().all()


@needs_compiler
def test_a_layer_gives_the_same_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = MultiHeadSelfAttention(16, 2, 16), torch.randn(6, 5, 16)
    results = []
    for fits in (native.fits, lambda projected, heads: False):
        monkeypatch.setattr(native, "fits", fits)
        layer.zero_grad()
        leaf = x.clone().requires_grad_()
        out = layer(leaf)
        out.square().sum().backward()
        results.append([out, leaf.grad, *(p.grad for p in layer.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_what_it_leaves_to_torch() -> None:
    assert not native.fits(torch.zeros(1, 2, 24, dtype=torch.float64), 1)
    assert not native.fits(torch.zeros(1, 2, 24, dtype=torch.bfloat16), 1)
    assert not native.fits(torch.zeros(1, 2, 24, device="meta"), 1)
    assert not native.fits(torch.zeros(1, 2, 36), 1)  # heads of 12 columns
    assert not native.fits(torch.zeros(1, 2, 24), 2)
