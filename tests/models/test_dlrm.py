"""DLRM against its formula, with and without dense features."""

import numpy as np
import pytest

from recsys_emb.data.schema import CategoricalField, DatasetSchema
from recsys_emb.errors import UserError
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import logits, network, rows


@pytest.mark.parametrize("dense", [0, 3])
def test_dot_products_go_deep(dense):
    schema = tiny_schema(dense=dense)
    model, batch = make_model("dlrm", schema, bottom=[7], hidden=[6, 5]), random_batch(schema, 6)
    expected = []
    for r in rows(model, schema, batch):
        bottom = [network(model.bottom, r.dense)] if dense else []
        vectors = [*r.fields, *bottom]
        dots = [vectors[i] @ vectors[j] for i in range(len(vectors)) for j in range(i)]
        expected.append(network(model.over, np.concatenate([*bottom, dots]))[0])
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-5)


def test_one_field_is_refused():
    schema = DatasetSchema(categorical=(CategoricalField(name="a", vocabulary="a"),), vocabularies={"a": 3})
    with pytest.raises(UserError, match="one field; use lr or fm"):
        make_model("dlrm", schema)
