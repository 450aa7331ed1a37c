"""QNN-alpha against its formula, in its loss too."""

import numpy as np
import pytest
import torch

from recsys_emb.models.qnn_alpha import mean_probability
from recsys_emb.training.task import ClickThrough, TaskLosses
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows

SCHEMA = tiny_schema(dense=2)


def test_quadratic_layers():
    model, batch = make_model("qnn_alpha", SCHEMA, layers=2, factors=3), random_batch(SCHEMA, 6)
    expected = []
    for r in rows(model, SCHEMA, batch):
        x = np.concatenate([r.fields.ravel(), r.dense])
        for layer in model.network[:-1:2]:
            weight = array(layer.linear.weight).reshape(3, 18, 18)
            bias = array(layer.linear.bias).reshape(3, 18)
            x = x + sum(x * np.maximum(weight[f] @ x + bias[f], 0) for f in range(3))
        expected.append(network(model.network[-1], x)[0])
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_mean_probability():
    a, b = torch.tensor([-2.0, 0.5, 30.0]), torch.tensor([1.0, 0.5, -30.0])
    expected = (torch.sigmoid(a) + torch.sigmoid(b)) / 2
    torch.testing.assert_close(torch.sigmoid(mean_probability(a, b)), expected)
    big = torch.tensor([200.0, -200.0])
    torch.testing.assert_close(mean_probability(big, big), big)


def test_two_passes_learn_from_their_average():
    model, batch = make_model("qnn_alpha", SCHEMA, init_std=0.2, dropout=0.5), random_batch(SCHEMA, 6)
    losses = TaskLosses(ClickThrough(), batch)
    torch.manual_seed(1)
    out, more = model.scored(batch, losses)
    torch.manual_seed(1)
    x = model.embed(batch).flat()
    p = [torch.sigmoid(model.network(x).detach().double()) for _ in range(2)]
    mean = (p[0] + p[1]) / 2
    torch.testing.assert_close(torch.sigmoid(out).double(), mean, rtol=1e-4, atol=1e-5)
    expected = sum(torch.nn.functional.binary_cross_entropy(q, mean, reduction="sum") for q in p)
    assert (p[0] - p[1]).abs().max() > 0.01
    assert more.item() == pytest.approx(expected.item(), rel=1e-4)


def test_without_dropout_there_is_one_pass():
    model, batch = make_model("qnn_alpha", SCHEMA, dropout=0.0), random_batch(SCHEMA, 6)
    out, more = model.scored(batch, TaskLosses(ClickThrough(), batch))
    assert more is None
    assert torch.equal(out, model(batch))
