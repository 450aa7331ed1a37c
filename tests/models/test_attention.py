"""Self-attention against loops and against autograd's own gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recsys_emb.models.attention import MultiHeadSelfAttention, _Attend
from recsys_emb.models.layers import Linear


@pytest.mark.parametrize(
    ("in_features", "options"),
    [(4, {}), (6, {}), (4, {"residual": False}), (4, {"scale": True}), (6, {"layer_norm": True, "scale": True})],
)
@pytest.mark.parametrize("dim", [3, 8])  # in torch, and in C++ where it can be compiled
def test_self_attention_against_loops_over_rows_heads_and_fields(in_features, options, dim):
    heads = 2
    layer, x = MultiHeadSelfAttention(in_features, heads, dim, **options), torch.randn(3, 5, in_features)
    for p in layer.parameters():
        p.data.normal_()
    q, k, v = (p.weight.detach().double().numpy() for p in (layer.query, layer.key, layer.value))
    has_projection = isinstance(layer.residual, Linear)
    assert has_projection == (options.get("residual", True) and in_features != heads * dim)
    expected = np.zeros((3, 5, heads * dim))
    for b, row in enumerate(x.double().numpy()):
        for i in range(5):
            for h in range(heads):
                part = slice(h * dim, (h + 1) * dim)
                scores = np.array([(q[part] @ row[i]) @ (k[part] @ row[j]) for j in range(5)])
                if options.get("scale"):
                    scores /= np.sqrt(dim)
                weights = np.exp(scores) / np.exp(scores).sum()
                expected[b, i, part] = sum(w * (v[part] @ row[j]) for j, w in enumerate(weights))
            if options.get("residual", True):
                expected[b, i] += layer.residual.weight.detach().double().numpy() @ row[i] if has_projection else row[i]
            if options.get("layer_norm"):
                z = expected[b, i]
                gamma, beta = (t.detach().double().numpy() for t in (layer.norm.weight, layer.norm.bias))
                expected[b, i] = (z - z.mean()) / np.sqrt(z.var() + layer.norm.eps) * gamma + beta
    np.testing.assert_allclose(layer(x).detach().numpy(), np.maximum(expected, 0), rtol=1e-3, atol=1e-4)


def plain(projected, kept, heads, scale):
    """What _Attend computes, with autograd's backward."""
    batch, fields, width = projected.shape
    query, key, value = projected.view(batch, fields, 3, heads, width // 3 // heads).permute(2, 3, 0, 1, 4)
    weights = torch.softmax(scale * (query @ key.transpose(2, 3)), dim=-1)
    if kept is not None:
        weights = weights * kept.view(weights.shape)
    return (weights @ value).permute(1, 2, 0, 3).reshape(batch, fields, width // 3)


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_gradient_is_that_of_autograd(rows, scale, dropout):
    x = torch.randn(rows, 5, 3 * 2 * 4, dtype=torch.float64)
    kept = F.dropout(torch.ones(2 * rows, 5, 5, dtype=torch.float64), dropout) if dropout else None
    upstream = torch.randn(rows, 5, 8, dtype=torch.float64).transpose(0, 1).contiguous().transpose(0, 1)
    results = []
    for attend in (_Attend.apply, plain):
        leaf = x.clone().requires_grad_()
        out = attend(leaf, kept, 2, scale)
        out.backward(upstream)
        results.append((out.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_in_bf16_it_is_as_near_to_fp32_as_autograd_is():
    projected = torch.randn(64, 9, 3 * 2 * 16)
    exact, *rounded = (projected.clone().requires_grad_() for _ in range(3))
    plain(exact, None, 2, 1.0).sum().backward()
    for leaf, attend in zip(rounded, (_Attend.apply, plain)):
        attend(leaf.bfloat16(), None, 2, 1.0).float().sum().backward()
    mine, autograd = ((leaf.grad - exact.grad).norm() / exact.grad.norm() for leaf in rounded)
    assert 0 < mine < 1.1 * autograd < 0.1


def test_dropout_drops_weights_in_training_only():
    torch.manual_seed(1)
    layer, x = MultiHeadSelfAttention(4, 2, 3, dropout=0.5), torch.randn(2, 5, 4)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert layer(x).shape == (2, 5, 6)
