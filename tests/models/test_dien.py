"""DIEN against its formulas, one row and one step at a time, and what its masks hide."""

import numpy as np
import pytest
import torch

from recsys_emb.models.dien import AttentionalGRU, InterestEvolution, next_item_loss
from recsys_emb.training.task import ClickThrough, TaskLosses
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows

SCHEMA = tiny_schema(dense=2, multi_valued=True, sequences=True)
THERE = torch.tensor([[False, False, True, True], [True] * 4, [False] * 4])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def recurrent(gru, xs, attention=None):
    """States of a GRU, a history at a time."""
    h, states = np.zeros(gru.units), []
    for t, x in enumerate(xs):
        a, b = np.split(network(gru.inputs, x), 3), np.split(network(gru.state, h), 3)
        u, r = sigmoid(a[0] + b[0]), sigmoid(a[1] + b[1])
        u = u if attention is None else attention[t] * u
        h = (1 - u) * h + u * np.tanh(a[2] + r * b[2])
        states.append(h)
    return np.array(states)


def evolved(layer, target, past):
    """The interest of one row."""
    if not len(past):
        return np.zeros(len(target))
    states = recurrent(layer.extractor, past)
    scores = np.exp([h @ array(layer.relevance.weight) @ target for h in states])
    return recurrent(layer.evolver, states, scores / scores.sum())[-1]


def test_interests_go_deep():
    model, batch, expected = make_model("dien", SCHEMA, hidden=[6, 5]), random_batch(SCHEMA, 8), []
    field = {f.name: i for i, f in enumerate([*SCHEMA.single_valued, *SCHEMA.multi_valued])}
    groups = [(["item_history", "category_history"], ["item", "category"]), (["city_history"], ["city"])]
    for r in rows(model, SCHEMA, batch):
        interests = []
        for layer, (keys, targets) in zip(model.evolution, groups):
            target = np.concatenate([r.fields[field[t]] for t in targets])
            interests.append(evolved(layer, target, np.concatenate([r.histories[k] for k in keys], axis=1)))
        expected.append(network(model.deep, np.concatenate([r.fields.ravel(), r.dense, *interests]))[0])
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_without_attention_it_is_torchs_gru():
    gru, theirs, x = AttentionalGRU(3, 5), torch.nn.GRU(3, 5, batch_first=True), torch.randn(2, 4, 3)
    with torch.no_grad():
        for ours, weight in ((gru.inputs, theirs.weight_ih_l0), (gru.state, theirs.weight_hh_l0)):
            u, r, new = ours.weight.chunk(3)
            weight.copy_(torch.cat([r, u, new]))
        for bias in (theirs.bias_ih_l0, theirs.bias_hh_l0):
            bias.zero_()
        # Theirs is h = (1 - z) h~ + z h: z is our 1 - u.
        theirs.weight_ih_l0[5:10].neg_()
        theirs.weight_hh_l0[5:10].neg_()
        torch.testing.assert_close(gru(x, torch.ones(2, 4, dtype=torch.bool)), theirs(x)[0])


def test_what_is_before_a_history_changes_nothing():
    layer = InterestEvolution(3)
    target, history = torch.randn(3, 3), torch.randn(3, 4, 3)
    other = torch.where(THERE[:, :, None], history, torch.randn(3, 4, 3) * 10)
    torch.manual_seed(0)
    interest, states = layer(target, history, THERE)
    changed, states_changed = layer(target, other, THERE)
    assert torch.equal(interest, changed)
    assert torch.equal(states, states_changed)
    assert not interest[2].any()
    losses = []
    for items in (history, other):
        torch.manual_seed(0)
        losses.append(next_item_loss(states, items, THERE).item())
    assert losses[0] == losses[1]
    moved = history.clone()
    moved[1, 2] += 1
    torch.manual_seed(0)
    assert next_item_loss(states, moved, THERE).item() != losses[0]


def test_next_item_loss_against_a_loop():
    states, history = torch.randn(3, 4, 2), torch.randn(3, 4, 2)
    history[1] = history[1, :1]  # so that some drawn items are the true ones
    torch.manual_seed(3)
    loss = next_item_loss(states, history, THERE)
    pairs = [(0, 2), (1, 0), (1, 1), (1, 2)]
    items = [history[b, t] for b in range(3) for t in range(4) if THERE[b, t]]
    torch.manual_seed(3)
    drawn, total, same = torch.randint(6, (4,)), 0.0, 0
    for (b, t), d in zip(pairs, drawn):
        h = states[b, t].double()
        total -= torch.log(torch.sigmoid(h @ history[b, t + 1].double())).item()
        if torch.equal(items[d], history[b, t + 1]):
            same += 1
        else:
            total -= torch.log(1 - torch.sigmoid(h @ items[d].double())).item()
    assert 0 < same < 4
    assert loss.item() == pytest.approx(total / 4, rel=1e-5)


def test_next_item_loss_of_histories_without_neighbours_is_zero():
    states = torch.randn(2, 3, 2, requires_grad=True)
    loss = next_item_loss(states, torch.randn(2, 3, 2), torch.tensor([[False, False, True], [False] * 3]))
    loss.backward()
    assert loss.item() == 0
    assert not states.grad.any()


def test_the_loss_is_added_once_for_each_row_and_can_be_left_out():
    batch = random_batch(SCHEMA, 8)
    losses, more = TaskLosses(ClickThrough(), batch), []
    for weight in (1.0, 0.5, 0.0):
        model = make_model("dien", SCHEMA, hidden=[6], aux_weight=weight).eval()
        torch.manual_seed(0)
        out, added = model.scored(batch, losses)
        torch.testing.assert_close(out, model(batch))
        more.append(added)
    torch.manual_seed(0)
    each = [next_item_loss(*found[1:]) for found in model.interests(model.embed(batch))]
    assert more[0].item() == pytest.approx(8 * sum(each).item(), rel=1e-5)
    assert more[1].item() == pytest.approx(0.5 * more[0].item(), rel=1e-5)
    assert more[2] is None


def test_order_of_a_history_matters():
    layer, target, history = InterestEvolution(3), torch.randn(1, 3), torch.randn(1, 4, 3)
    there = torch.ones(1, 4, dtype=torch.bool)
    assert not torch.allclose(layer(target, history, there)[0], layer(target, history.flip(1), there)[0])
