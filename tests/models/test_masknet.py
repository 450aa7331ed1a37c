"""MaskNet against its formula, in both structures."""

import numpy as np
import pytest
from pydantic import ValidationError

from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows

SCHEMA = tiny_schema(dense=2)


def normed(x, eps=1e-5):
    return (x - x.mean()) / np.sqrt(x.var() + eps)


def masked(block, embedded, h):
    linear, norm = block.hidden[:2]
    out = normed(array(linear.weight) @ (network(block.mask, embedded) * h))
    return np.maximum(out * array(norm.weight) + array(norm.bias), 0)


@pytest.mark.parametrize("structure", ["parallel", "serial"])
def test_masks_of_the_embedding(structure):
    options = {"structure": structure, "hidden": [6, 5], "blocks": 2, "block_units": 3, "reduction": 0.5}
    model, batch, expected = make_model("masknet", SCHEMA, **options), random_batch(SCHEMA, 6), []
    for r in rows(model, SCHEMA, batch):
        vectors = np.concatenate([r.fields, r.dense[:, None] * array(model.dense.weight)])
        gain, shift = array(model.norm.gain), array(model.norm.shift)
        h = np.concatenate([normed(v) * gain[f] + shift[f] for f, v in enumerate(vectors)])
        if structure == "serial":
            for block in model.blocks:
                h = masked(block, vectors.ravel(), h)
        else:
            h = np.concatenate([masked(block, vectors.ravel(), h) for block in model.blocks])
        expected.append(network(model.out, h)[0])
    assert [b.hidden[0].out_features for b in model.blocks] == ([6, 5] if structure == "serial" else [3, 3])
    assert model.blocks[0].mask[0].out_features == 12  # half of 6 vectors of 4
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-3, atol=1e-4)


def test_batch_norm_has_no_place_in_the_serial_structure():
    with pytest.raises(ValidationError, match="batch_norm has no place"):
        make_model("masknet", SCHEMA, structure="serial", batch_norm=True)
