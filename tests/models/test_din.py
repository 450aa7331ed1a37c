"""DIN against its formula, and what a history may and may not change."""

import numpy as np
import pytest
import torch
from torchrec import KeyedJaggedTensor

from recsys_emb.errors import UserError
from recsys_emb.models.histories import aligned_groups
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import logits, network, rows

SCHEMA = tiny_schema(dense=2, multi_valued=True, sequences=True)
OPTIONS = {"hidden": [6, 5], "attention_hidden": [4]}


def with_histories(batch, change):
    """The batch with each (item, category, city) history list of every row replaced by ``change(row, lists)``."""
    features = batch.sequences.to_dict()
    values, lengths = {k: [] for k in SCHEMA.sequence_keys}, {k: [] for k in SCHEMA.sequence_keys}
    for b in range(len(batch)):
        lists = {}
        for key, feature in features.items():
            start = int(feature.lengths()[:b].sum())
            lists[key] = feature.values()[start : start + int(feature.lengths()[b])]
        for key, ids in change(b, lists).items():
            values[key].append(ids)
            lengths[key].append(len(ids))
    batch.sequences = KeyedJaggedTensor(
        SCHEMA.sequence_keys,
        torch.cat([i for key in SCHEMA.sequence_keys for i in values[key]]),
        lengths=torch.tensor([n for key in SCHEMA.sequence_keys for n in lengths[key]]),
        stride=len(batch),
    )
    return batch


@pytest.mark.parametrize("options", [{}, {"softmax": True}, {"activation": "relu", "attention_activation": "relu"}])
def test_weighted_histories_go_deep(options):
    model, batch = make_model("din", SCHEMA, **OPTIONS, **options), random_batch(SCHEMA, 8)
    model.train()
    model(batch)  # moves Dice's statistics off their start
    field = {f.name: i for i, f in enumerate([*SCHEMA.single_valued, *SCHEMA.multi_valued])}
    # What is attended together, and with which targets, written out: the aligned pair, then the lone sequence.
    groups = [(["item_history", "category_history"], ["item", "category"]), (["city_history"], ["city"])]
    expected = []
    for r in rows(model, SCHEMA, batch):
        interests = []
        for attention, (keys, targets) in zip(model.attention, groups):
            q = np.concatenate([r.fields[field[t]] for t in targets])
            past = np.concatenate([r.histories[k] for k in keys], axis=1)
            weights = np.array([network(attention.unit, np.concatenate([q, k, q - k, q * k]))[0] for k in past])
            if options.get("softmax") and len(past):
                weights = np.exp(weights) / np.exp(weights).sum()
            interests.append(weights @ past)
        expected.append(network(model.deep, np.concatenate([r.fields.ravel(), r.dense, *interests]))[0])
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_order_of_a_history_does_not_matter():
    model, batch = make_model("din", SCHEMA, **OPTIONS), random_batch(SCHEMA, 20)
    before = logits(model, batch)
    after = logits(model, with_histories(batch, lambda b, lists: {k: ids.flip(0) for k, ids in lists.items()}))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-6)


def test_only_the_row_whose_history_changed_changes():
    model, batch = make_model("din", SCHEMA, **OPTIONS), random_batch(SCHEMA, 20)
    before = logits(model, batch)

    def change(b, lists):
        return {k: torch.cat([ids, torch.tensor([1, 2])]) for k, ids in lists.items()} if b == 7 else lists

    after = logits(model, with_histories(batch, change))
    assert abs(after[7] - before[7]) > 1e-3
    others = np.arange(20) != 7
    np.testing.assert_allclose(after[others], before[others], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("softmax", [False, True])
def test_batch_of_empty_histories(training, softmax):
    model, batch = make_model("din", SCHEMA, softmax=softmax, **OPTIONS), random_batch(SCHEMA, 5)
    batch = with_histories(batch, lambda b, lists: {k: ids[:0] for k, ids in lists.items()})
    model.train(training)
    out = model(batch)
    out.sum().backward()
    assert torch.isfinite(out).all()
    assert not any(torch.isnan(p.grad).any() for p in model.parameters() if p.grad is not None)


def test_aligned_sequences_are_one_group():
    assert aligned_groups(SCHEMA) == [["item_history", "category_history"], ["city_history"]]


def test_dataset_without_sequences_is_refused():
    with pytest.raises(UserError, match=r"needs a sequence field.*use autoint, .*wide_deep"):
        make_model("din", tiny_schema())
