"""Wide & Deep against its formula."""

import numpy as np
import pytest

from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows


@pytest.mark.parametrize("batch_norm", [False, True])
def test_wide_plus_deep(batch_norm):
    schema = tiny_schema(dense=2)
    model = make_model("wide_deep", schema, hidden=[6, 5], batch_norm=batch_norm, dropout=0.3)
    batch = random_batch(schema, 6)
    model.train()
    model(batch)  # moves the running statistics off their start
    expected = []
    for r in rows(model, schema, batch):
        wide = array(model.wide.bias) + r.first_order.sum() + r.dense @ array(model.wide.weight)
        expected.append(wide + network(model.deep, np.concatenate([r.vectors.ravel(), r.dense]))[0])
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-5)
