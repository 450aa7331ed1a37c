"""Shared layers against formulas written out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from recsys_emb.models.layers import (
    MLP,
    BatchNorm,
    CrossNetV2,
    DenseEmbedding,
    Dice,
    DotInteraction,
    FirstOrder,
    FMInteraction,
    Linear,
    Logit,
    TargetAttention,
    jagged_softmax,
)


def test_linear_starts_xavier_normal_with_zero_bias():
    torch.manual_seed(0)
    layer = Linear(300, 500)
    assert layer.weight.std().item() == pytest.approx((2 / 800) ** 0.5, rel=0.02)
    assert not layer.bias.any()


def test_logit_is_float32_and_unrounded_under_autocast():
    layer, x = Logit(50), torch.randn(6, 50)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.shape == (6,)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, x @ layer.weight[0] + layer.bias)


def test_dice_in_training_follows_the_paper():
    dice, s = Dice(3), torch.randn(50, 3) * 4 + 2
    dice.alpha.data = torch.tensor([0.0, 0.5, -1.0])
    x, alpha = s.double().numpy(), dice.alpha.detach().double().numpy()
    p = 1 / (1 + np.exp(-(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-8)))
    np.testing.assert_allclose(dice(s).detach().numpy(), p * x + (1 - p) * alpha * x, rtol=1e-5, atol=1e-6)


def test_dice_in_eval_uses_running_statistics():
    dice = Dice(2)
    dice.alpha.data.fill_(0.3)
    for _ in range(200):
        dice(torch.randn(200, 2) * 3 + 5)
    dice.eval()
    mean, var = dice.norm.running_mean.numpy(), dice.norm.running_var.numpy()
    np.testing.assert_allclose(mean, 5, atol=0.3)
    np.testing.assert_allclose(var, 9, atol=1)
    x = np.array([[1.0, 7.0]])
    p = 1 / (1 + np.exp(-(x - mean) / np.sqrt(var + 1e-8)))
    got = dice(torch.tensor(x, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(got, p * x + (1 - p) * 0.3 * x, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_batch_norm_trains_on_a_batch_without_variance(rows):
    norm = BatchNorm(4)
    out = norm(torch.ones(rows, 4))
    assert torch.equal(norm.running_mean, torch.zeros(4))
    torch.testing.assert_close(out, torch.ones(rows, 4) / (1 + norm.eps) ** 0.5)


def test_mlp_has_the_layers_asked_for():
    mlp = MLP(3, [5, 4], dropout=0.5, batch_norm=True, activation="dice")
    assert [type(m).__name__ for m in mlp] == ["Linear", "BatchNorm", "Dice", "Dropout"] * 2
    assert mlp(torch.randn(7, 3)).shape == (7, mlp.out_features) == (7, 4)


def test_dense_embedding_and_first_order():
    dense, first = torch.randn(4, 3), torch.randn(4, 2)
    embedding, linear = DenseEmbedding(3, 5), FirstOrder(3)
    linear.weight.data.normal_()
    linear.bias.data.fill_(0.7)
    for b in range(4):
        for j in range(3):
            torch.testing.assert_close(embedding(dense)[b, j], dense[b, j] * embedding.weight[j])
        expected = 0.7 + sum(first[b]) + sum(dense[b, j] * linear.weight[j] for j in range(3))
        torch.testing.assert_close(linear(first, dense)[b], expected)


def test_fm_is_the_sum_over_all_pairs_of_all_blocks():
    a, b = torch.randn(5, 3, 4), torch.randn(5, 2, 4)
    vectors = torch.cat([a, b], dim=1).double().numpy()
    expected = [sum(u @ v for u, v in itertools.combinations(row, 2)) for row in vectors]
    np.testing.assert_allclose(FMInteraction()(a, b).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_dot_interaction_has_each_pair_once():
    vectors = torch.randn(2, 4, 3)
    out = DotInteraction(4)(vectors)
    pairs = [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]
    expected = torch.stack([(vectors[:, i] * vectors[:, j]).sum(1) for i, j in pairs], dim=1)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("low_rank", [None, 2])
def test_cross_net(low_rank):
    net, x0 = CrossNetV2(5, 2, low_rank), torch.randn(3, 5)
    for p in net.parameters():
        p.data.normal_()
    x = x0.double()
    for layer in net.layers:
        weight = layer.weight if low_rank is None else layer[1].weight @ layer[0].weight
        bias = layer.bias if low_rank is None else layer[1].bias
        x = x0 * torch.stack([weight.double() @ row + bias for row in x]) + x
    torch.testing.assert_close(net(x0).double(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("softmax", [False, True])
def test_target_attention_against_loops_over_histories(softmax):
    layer = TargetAttention(3, [5], "relu", softmax)
    for p in layer.parameters():
        p.data.normal_()
    lengths = [2, 0, 4]
    target, history = torch.randn(3, 3), torch.randn(6, 3)
    first, last = layer.unit[0][0], layer.unit[1]
    start, expected = 0, torch.zeros(3, 3)
    for b, n in enumerate(lengths):
        past, q = history[start : start + n], target[b]
        start += n
        weights = []
        for k in past:
            hidden = (first.weight @ torch.cat([q, k, q - k, q * k]) + first.bias).clamp(min=0)
            weights.append(last.weight[0] @ hidden + last.bias[0])
        if n and softmax:
            weights = torch.softmax(torch.stack(weights), 0)
        for w, k in zip(weights, past):
            expected[b] += w * k
    torch.testing.assert_close(layer(target, history, torch.tensor(lengths)), expected, rtol=1e-4, atol=1e-4)


def test_jagged_softmax_survives_large_scores():
    rows = torch.tensor([0, 0, 2])
    out = jagged_softmax(torch.tensor([1000.0, 999.0, -1000.0]), rows, 3)
    torch.testing.assert_close(out, torch.tensor([0.7310586, 0.2689414, 1.0]))


def test_predictions_between_steps_are_those_of_the_present_weights():
    """A fused optimizer changes weights without a trace in their version."""
    layer, x = Linear(8, 8), torch.randn(4, 8)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    seen = []
    for _ in range(3):
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            seen.append(layer(x).clone())
        expected = x.bfloat16() @ layer.weight.detach().bfloat16().t() + layer.bias.detach().bfloat16()
        torch.testing.assert_close(seen[-1], expected, rtol=0.02, atol=0.02)
        layer(x).sum().backward()
        optimizer.step()
    assert not torch.allclose(seen[0], seen[1], atol=0.1)
    assert not torch.allclose(seen[1], seen[2], atol=0.1)


def test_rounded_weights_are_kept_until_the_weights_change():
    layer, x = Linear(3, 2).requires_grad_(False), torch.randn(4, 3)

    def predicted(inference: bool) -> torch.Tensor:
        with torch.inference_mode(inference), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return layer(x)

    first = predicted(True)
    assert first.dtype == torch.bfloat16
    assert torch.equal(first, predicted(False))
    with torch.no_grad():
        layer.weight.add_(1)
    assert torch.equal(predicted(True), predicted(False))
    with torch.no_grad():
        layer.bias.add_(1)
    assert torch.equal(predicted(True), predicted(False))
    layer.load_state_dict(Linear(3, 2).state_dict(), assign=True)
    assert torch.equal(predicted(True), predicted(False))
    assert not torch.equal(predicted(True), first)
