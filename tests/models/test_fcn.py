"""FCN against its formula, in its loss too."""

import numpy as np
import pytest

from recsys_emb.training.task import ClickThrough, TaskLosses
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows

SCHEMA = tiny_schema(dense=1)
OPTIONS = {"exponential_layers": 3, "linear_layers": 2}


def crossed(net, x0, exponential):
    """A network's logit for one row, column by column."""
    x, half = x0, (len(x0) + 1) // 2
    for cross, norm, bias in zip(net.crosses, net.norms, net.biases):
        c = network(cross, x)
        z = (c - c.mean()) / np.sqrt(c.var() + norm.eps) * array(norm.weight) + array(norm.bias)
        new = []
        for i in range(len(x0)):
            j = i % half
            h = c[j] if i < half else c[j] * max(z[j], 0)
            new.append((x if exponential else x0)[i] * (h + array(bias)[i]) + x[i])
        x = np.array(new)
    return network(net.out, x)[0]


def by_network(model, batch, width):
    """Logits of both networks, written out: a pair for each row."""
    out = []
    for r in rows(model, SCHEMA, batch):
        vectors = np.concatenate([r.fields, r.dense[:, None] * array(model.dense.weight)])
        first = (width + 1) // 2
        x0 = np.array([*vectors[:, :first].ravel(), *vectors[:, first:].ravel()])
        out.append([crossed(model.exponential, x0, True), crossed(model.linear, x0, False)])
    return np.array(out)


@pytest.mark.parametrize("width", [3, 4])
def test_two_cross_networks_are_averaged(width):
    model, batch = make_model("fcn", SCHEMA, embedding_dim=width, **OPTIONS), random_batch(SCHEMA, 6)
    np.testing.assert_allclose(logits(model, batch), by_network(model, batch, width).mean(1), rtol=1e-3, atol=1e-4)


def test_a_network_worse_than_the_average_learns_from_the_labels():
    model, batch = make_model("fcn", SCHEMA, **OPTIONS).eval(), random_batch(SCHEMA, 40)
    y, each = batch.labels.numpy(), by_network(model, batch, 4)

    def loss(z):
        return np.logaddexp(0, -z) @ y + np.logaddexp(0, z) @ (1 - y)

    whole, own = loss(each.mean(1)), [loss(each[:, i]) for i in range(2)]
    assert max(own) > whole
    expected = sum(o * max(0, (o - whole) / 40) for o in own)
    more = model.scored(batch, TaskLosses(ClickThrough(), batch))[1]
    assert more.item() == pytest.approx(expected, rel=1e-3)
