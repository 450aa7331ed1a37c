"""Encoded dense features against their formula; where they stand among the fields."""

import numpy as np
import torch

from recsys_emb.models.autodis import AutoDis
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array


def test_a_value_mixes_its_features_vectors():
    layer, dense = AutoDis(2, 3, 4), torch.randn(5, 2)
    layer.shift.data.normal_()
    for b in range(5):
        for j in range(2):
            h = dense[b, j].item() * array(layer.slope[j]) + array(layer.shift[j])
            h = np.where(h > 0, h, 0.01 * h)
            scores = [sum(h[i] * array(layer.mix)[j, i, k] for i in range(3)) + h[k] for k in range(3)]
            shares = np.exp(scores) / np.exp(scores).sum()
            expected = sum(share * vector for share, vector in zip(shares, array(layer.vectors[j])))
            np.testing.assert_allclose(array(layer(dense)[b, j]), expected, rtol=1e-4, atol=1e-6)


def test_it_is_float32_under_autocast():
    layer, dense = AutoDis(2, 3, 4), torch.randn(5, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(dense), layer(dense.float()))
        assert layer(dense).dtype == torch.float32


def test_encoded_features_follow_the_fields_and_bring_first_order_weights():
    schema = tiny_schema(dense=2)
    model, plain = make_model("fm", schema, dense_buckets=3), make_model("fm", schema)
    batch = random_batch(schema, 5)
    x, encoded = model.embed(batch), model.encoded(batch.dense)
    assert torch.equal(x.fields[:, :4], plain.embed(batch).fields)
    assert torch.equal(x.fields[:, 4:], encoded[..., :4])
    assert torch.equal(x.first_order[:, 4:], encoded[..., 4])
    assert x.dense.shape == (5, 0)


def test_without_dense_features_there_is_nothing_to_encode():
    assert make_model("fm", tiny_schema(dense=0), dense_buckets=3).encoded is None
