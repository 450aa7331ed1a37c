"""DeepFM against its formula."""

from itertools import combinations

import numpy as np
import pytest

from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows


@pytest.mark.parametrize("dense", [0, 2])
def test_machine_plus_network(dense):
    schema = tiny_schema(dense=dense)
    model, batch = make_model("deepfm", schema, hidden=[6, 5]), random_batch(schema, 6)
    model.dense.weight.data.normal_()
    expected = []
    for r in rows(model, schema, batch):
        vectors = [*r.vectors, *(r.dense[:, None] * array(model.dense.weight))]
        pairs = sum(u @ v for u, v in combinations(vectors, 2))
        first = array(model.linear.bias) + r.first_order.sum() + r.dense @ array(model.linear.weight)
        expected.append(first + pairs + network(model.deep, np.concatenate([r.vectors.ravel(), r.dense]))[0])
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-5)
