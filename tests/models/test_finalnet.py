"""FinalNet against its formula, in its loss too."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from recsys_emb.models.finalnet import FieldGate
from recsys_emb.training.task import ClickThrough, TaskLosses
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows

SCHEMA = tiny_schema(dense=2)


def walked(block, x):
    """A block's logit for one row, layer by layer."""
    for layer in block:
        if hasattr(layer, "linear"):
            h = network(layer.linear, x)
            half = len(h) // 2
            x = np.array([*h[:half], *(h[i] * h[half + i] for i in range(half))])
        else:
            x = network(layer, x)
    return x[0]


def by_block(model, batch):
    """Logits of each block, written out: a list for each row."""
    out = []
    for r in rows(model, SCHEMA, batch):
        vectors = np.concatenate([r.fields, r.dense[:, None] * array(model.dense.weight)])
        gated = vectors
        if model.gate is not None:
            weight, bias = array(model.gate.gate.weight), array(model.gate.gate.bias)
            gates = np.stack([sum(weight[f, g] * vectors[g] for g in range(6)) + bias[f] for f in range(6)])
            gated = np.concatenate([vectors, vectors * gates])
        row = [walked(model.gated, gated.ravel())]
        out.append(row if model.plain is None else [*row, walked(model.plain, vectors.ravel())])
    return np.array(out)


@pytest.mark.parametrize("options", [{}, {"blocks": 1}, {"field_gate": False, "batch_norm": False}])
def test_blocks_are_averaged(options):
    model, batch = make_model("finalnet", SCHEMA, hidden=[6, 4], **options), random_batch(SCHEMA, 6)
    model(batch)  # moves the statistics of batch normalisation off their start
    np.testing.assert_allclose(logits(model, batch), by_block(model, batch).mean(1), rtol=1e-4, atol=1e-4)


def test_each_block_learns_from_the_average_which_does_not_learn_from_it():
    model, batch = make_model("finalnet", SCHEMA, hidden=[6, 4]).eval(), random_batch(SCHEMA, 6)
    each = by_block(model, batch)
    p = 1 / (1 + np.exp(-each))
    teacher = 1 / (1 + np.exp(-each.mean(1)))[:, None]
    out, more = model.scored(batch, TaskLosses(ClickThrough(), batch))
    np.testing.assert_allclose(out.detach(), each.mean(1), rtol=1e-4, atol=1e-4)
    expected = -(teacher * np.log(p) + (1 - teacher) * np.log(1 - p)).sum()
    assert more.item() == pytest.approx(expected, rel=1e-4)
    more.backward()  # of a logit y: sigmoid(y) - teacher, as if the teacher were given
    (bias,) = (model.plain[-1].bias.grad,)
    assert bias.item() == pytest.approx((p - teacher)[:, 1].sum(), rel=1e-3)


def test_one_block_has_nobody_to_learn_from():
    model, batch = make_model("finalnet", SCHEMA, hidden=[4], blocks=1), random_batch(SCHEMA, 6)
    assert model.scored(batch, TaskLosses(ClickThrough(), batch))[1] is None


def test_a_new_gate_lets_all_through():
    vectors = torch.randn(3, 5, 4)
    assert torch.equal(FieldGate(5)(vectors), torch.cat([vectors, vectors], dim=1))


def test_odd_units_are_refused():
    with pytest.raises(ValidationError, match="multiple of 2"):
        make_model("finalnet", SCHEMA, hidden=[5])
