"""Logistic regression against its formula."""

import numpy as np

from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, rows


def test_sum_of_weights():
    schema = tiny_schema(dense=3, multi_valued=True, sequences=True)
    model, batch = make_model("lr", schema), random_batch(schema, 6)
    assert model.embedding.width == 1
    linear = model.linear
    expected = [
        array(linear.bias) + r.first_order.sum() + r.dense @ array(linear.weight) for r in rows(model, schema, batch)
    ]
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-5, atol=1e-6)
