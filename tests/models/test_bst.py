"""BST against its formulas, one row and one head at a time, and what its masks hide."""

import numpy as np
import pytest
import torch

from recsys_emb.models.bst import HistoryTransformer, TransformerLayer
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows

SCHEMA = tiny_schema(dense=2, multi_valued=True, sequences=True)


def normed(norm, x):
    x = (x - x.mean()) / np.sqrt(x.var() + norm.eps)
    return x * array(norm.weight) + array(norm.bias)


def attended(layer, xs):
    """A transformer layer on the items [length, width] of one row."""
    q, k, v = ([network(part, x) for x in xs] for part in (layer.query, layer.key, layer.value))
    columns, out = len(q[0]) // layer.heads, []
    for i, x in enumerate(xs):
        heads = []
        for h in range(layer.heads):
            at = slice(h * columns, (h + 1) * columns)
            weights = np.exp([q[i][at] @ kj[at] / np.sqrt(columns) for kj in k])
            heads.append(sum(w * vj[at] for w, vj in zip(weights / weights.sum(), v)))
        x = normed(layer.norms[0], x + network(layer.joined, np.concatenate(heads)))
        first, _, second = layer.feed_forward
        h = network(first, x)
        out.append(normed(layer.norms[1], x + network(second, np.where(h > 0, h, 0.01 * h))))
    return out


@pytest.mark.parametrize("heads", [2, 5])
def test_transformed_histories_go_deep(heads):
    options = {"hidden": [6, 5], "transformer_layers": 2, "heads": heads}
    model, batch, expected = make_model("bst", SCHEMA, **options), random_batch(SCHEMA, 8), []
    field = {f.name: i for i, f in enumerate([*SCHEMA.single_valued, *SCHEMA.multi_valued])}
    groups = [(["item_history", "category_history"], ["item", "category"]), (["city_history"], ["city"])]
    for r in rows(model, SCHEMA, batch):
        interests = []
        for transformer, (keys, targets) in zip(model.transformers, groups):
            target = np.concatenate([r.fields[field[t]] for t in targets])
            xs = [*np.concatenate([r.histories[k] for k in keys], axis=1), target]
            back = array(transformer.position)[::-1]  # the target's first
            xs = [np.concatenate([x, back[len(xs) - 1 - i]]) for i, x in enumerate(xs)]
            for layer in transformer.layers:
                xs = attended(layer, xs)
            interests.append(np.mean(xs, axis=0))
        expected.append(network(model.deep, np.concatenate([r.fields.ravel(), r.dense, *interests]))[0])
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-3, atol=1e-4)


def test_what_is_before_a_history_changes_nothing():
    transformer = HistoryTransformer(3, 4, position_dim=2, layers=2, heads=2, dropout=0.0)
    there = torch.tensor([[False, False, True, True], [True] * 4, [False] * 4])
    target, history = torch.randn(3, 3), torch.randn(3, 4, 3)
    before = transformer(target, history, there)
    padding = torch.where(there[:, :, None], history, torch.randn(3, 4, 3) * 10)
    assert torch.equal(transformer(target, padding, there), before)
    history[1, 0] += 1
    changed = transformer(target, history, there)
    assert [torch.equal(a, b) for a, b in zip(changed, before)] == [True, False, True]


def test_columns_of_heads_are_rounded_up():
    layer = TransformerLayer(5, 2, 0.0)
    assert layer.query.weight.shape == (6, 5)
    assert layer.joined.weight.shape == (5, 6)
