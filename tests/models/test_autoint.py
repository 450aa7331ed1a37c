"""AutoInt and AutoInt+ against sums over heads and fields (the layer itself: test_layers)."""

import numpy as np
import pytest

from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows


def interact(layer, x):
    """One interacting layer on the vectors of a row, [F, in] -> [F, heads * head_dim]."""
    q, k, v = ((x @ array(p.weight).T).reshape(len(x), layer.heads, -1) for p in (layer.query, layer.key, layer.value))
    scores = np.exp(np.einsum("ihd,jhd->hij", q, k))
    out = np.einsum("hij,jhd->ihd", scores / scores.sum(-1, keepdims=True), v).reshape(len(x), -1)
    residual = x if out.shape == x.shape else x @ array(layer.residual.weight).T
    return np.maximum(out + residual, 0)


@pytest.mark.parametrize("dense", [0, 2])
@pytest.mark.parametrize("name", ["autoint", "autoint_plus"])
def test_attention_and_deep(name, dense):
    schema = tiny_schema(dense=dense, multi_valued=True)
    options = {"hidden": [6, 5]} if name == "autoint_plus" else {}
    model = make_model(name, schema, attention_layers=2, heads=2, attention_dim=3, **options)
    model.dense.weight.data.normal_()
    batch, expected = random_batch(schema, 6), []
    for r in rows(model, schema, batch):
        x = np.concatenate([r.fields, r.dense[:, None] * array(model.dense.weight)])
        for layer in model.attention:
            x = interact(layer, x)
        deep = network(model.deep, np.concatenate([r.fields.ravel(), r.dense]))[0] if options else 0
        expected.append(network(model.out, x.ravel())[0] + deep)
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_options_reach_the_layers():
    schema = tiny_schema()
    options = {"scale": True, "layer_norm": True, "residual": False, "attention_dropout": 0.25, "attention_dim": 5}
    model = make_model("autoint", schema, **options)
    assert len(model.attention) == 3
    for layer in model.attention:
        assert layer.scale == 5**-0.5
        assert layer.norm is not None
        assert layer.residual is None
        assert layer.dropout == 0.25
