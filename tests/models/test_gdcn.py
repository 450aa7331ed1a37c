"""GDCN against its formula, in both structures."""

import numpy as np
import pytest

from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
@pytest.mark.parametrize("low_rank", [None, 2])
def test_gated_cross_and_deep(structure, low_rank):
    schema = tiny_schema(dense=2)
    model = make_model("gdcn", schema, hidden=[6, 5], cross_layers=2, structure=structure, low_rank=low_rank)
    batch, expected = random_batch(schema, 6), []
    for r in rows(model, schema, batch):
        x0 = np.concatenate([r.fields.ravel(), r.dense])
        x = x0
        for cross, gate in zip(model.cross.crosses, model.cross.gates):
            x = np.array([x0[i] * network(cross, x)[i] / (1 + np.exp(-network(gate, x)[i])) + x[i] for i in range(18)])
        deep = network(model.deep, x if structure == "stacked" else x0)
        cross = 0 if structure == "stacked" else array(model.cross_logit.weight[0]) @ x
        expected.append(cross + network(model.deep_logit, deep)[0])
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_gates_have_no_bias():
    gates = make_model("gdcn", tiny_schema(), low_rank=2).cross.gates
    assert all(layer.bias is None for gate in gates for layer in gate)
