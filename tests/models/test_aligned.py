"""Linear layers of odd widths against ``F.linear``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from recsys_emb.models.aligned import AlignedLinear, pays
from recsys_emb.models.layers import Linear


@pytest.mark.parametrize("inputs", [3, 64, 65, 429])
@pytest.mark.parametrize("outputs", [3, 64, 70, 429])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, shift = torch.randn(37, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    leaves = [t.requires_grad_() for t in (x, weight, shift)[: 2 + bias]]
    mine = AlignedLinear.apply(x, weight, shift if bias else None)
    wanted = F.linear(x.double(), weight.double(), shift.double() if bias else None)
    upstream = torch.randn(outputs, 37).t()  # not contiguous
    torch.testing.assert_close(mine.double(), wanted, rtol=1e-5, atol=1e-4)
    mine_grads = torch.autograd.grad(mine, leaves, upstream)
    for ours, theirs in zip(mine_grads, torch.autograd.grad(wanted, leaves, upstream.double())):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-4)


def test_rows_of_a_wide_result_are_aligned() -> None:
    x = torch.randn(5, 429, requires_grad=True)
    out = AlignedLinear.apply(x, torch.randn(70, 429), None)
    assert out.stride() == (80, 1)
    assert out.data_ptr() % 64 == 0
    (grad,) = torch.autograd.grad(out, [x], torch.ones(5, 70))
    assert grad.stride() == (432, 1)
    assert AlignedLinear.apply(x, torch.randn(33, 429), None).stride() == (33, 1)


def test_only_what_is_asked_for_is_differentiated() -> None:
    weight = torch.randn(70, 65, requires_grad=True)
    AlignedLinear.apply(torch.randn(4, 65), weight, torch.zeros(70)).sum().backward()
    assert weight.grad is not None
    x = torch.randn(4, 65, requires_grad=True)
    AlignedLinear.apply(x, weight.detach(), None).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize(
    ("shape", "inputs", "outputs", "paying"),
    [((4, 429), 429, 400, True), ((4, 400), 400, 429, True), ((4, 416), 416, 400, False), ((4, 13), 13, 1, False),
     ((4, 3, 429), 429, 400, False), ((0, 429), 429, 400, True)],
)  # fmt: skip
def test_a_linear_layer_uses_it_where_it_pays(shape: tuple[int, ...], inputs: int, outputs: int, paying: bool) -> None:
    layer, x = Linear(inputs, outputs), torch.randn(shape)
    assert pays(x, layer.weight) is paying
    assert not pays(x.double(), layer.weight.double())
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), rtol=1e-5, atol=1e-5)


def test_products_in_bf16_are_left_alone() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(429, 400)(torch.randn(4, 429)).dtype == torch.bfloat16
