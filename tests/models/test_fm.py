"""Factorisation machine against the sum over pairs."""

from itertools import combinations

import numpy as np
import pytest

from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, rows


@pytest.mark.parametrize("dense", [0, 3])
def test_first_order_and_all_pairs(dense):
    schema = tiny_schema(dense=dense, multi_valued=True)
    model, batch = make_model("fm", schema), random_batch(schema, 6)
    model.dense.weight.data.normal_()
    expected = []
    for r in rows(model, schema, batch):
        vectors = [*r.vectors, *(r.dense[:, None] * array(model.dense.weight))]
        pairs = sum(u @ v for u, v in combinations(vectors, 2))
        first = r.first_order.sum() + r.dense @ array(model.linear.weight)
        expected.append(array(model.linear.bias) + first + pairs)
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-5)
