"""What holds for every registered CTR model, on datasets of every shape it accepts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrec import KeyedJaggedTensor

from recsys_emb.data.schema import DatasetSchema
from recsys_emb.models.base import CTRModel, build_model, model_registry
from recsys_emb.training.task import ClickThrough, TaskLosses
from tests import builders
from tests.builders import random_batch, select_rows, tiny_schema

SCHEMAS = {
    "categorical": tiny_schema(dense=0),
    "dense": tiny_schema(dense=3),
    "multi_valued": tiny_schema(dense=2, multi_valued=True),
    "sequences": tiny_schema(dense=2, multi_valued=True, sequences=True),
    "sequences_only": tiny_schema(dense=0, sequences=True),
}
CASES = [
    pytest.param(name, schema, id=f"{name}-{kind}")
    for name in model_registry.names()
    for kind, schema in SCHEMAS.items()
    if schema.sequences or not model_registry.get(name).uses_sequences
]
every_case = pytest.mark.parametrize(("name", "schema"), CASES)


def make_model(name: str, schema: DatasetSchema, **options) -> CTRModel:
    """With narrow layers where the model has such options, so that the battery is quick, and without dropout."""
    small: dict[str, Any] = {"hidden": [16, 8], "attention_dim": 8, "attention_layers": 2, "block_units": 8}
    small |= dict.fromkeys(("dropout", "linear_dropout"), 0.0)
    known = model_registry.get(name).Config.model_fields
    return builders.make_model(name, schema, **{k: v for k, v in small.items() if k in known}, **options)


def loss_of(model: CTRModel, batch) -> torch.Tensor:
    """The mean loss of a training step, with what the model adds to it."""
    losses = TaskLosses(ClickThrough(), batch)
    logits, more = model.scored(batch, losses)
    return (losses.loss(logits) + (0 if more is None else more)) / losses.rows


def eval_logits(model: CTRModel, batch) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(batch)


@every_case
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_reduces_the_loss(name, schema, precision):
    model, batch = make_model(name, schema, init_std=0.01), random_batch(schema, 128)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, fused=True)

    def loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return loss_of(model, batch)

    model.eval()
    before = loss().item()
    model.train()
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    model.eval()
    assert loss().item() < 0.9 * before


@every_case
def test_every_parameter_gets_a_gradient(name, schema):
    model, batch = make_model(name, schema), random_batch(schema, 64)
    model.train()
    loss_of(model, batch).backward()
    for key, parameter in model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, key
            assert parameter.grad.any(), key
            assert torch.isfinite(parameter.grad).all(), key


@pytest.mark.parametrize("name", model_registry.names())
def test_encoded_dense_features_are_fields(name):
    """Of every model; also of those that weigh dense features, or that have a network for them."""
    schema = SCHEMAS["sequences"]
    model, batch = make_model(name, schema, dense_buckets=3), random_batch(schema, 64)
    assert model.num_dense == 0
    model.encoded.vectors.data.normal_()
    loss_of(model, batch).backward()
    for key, parameter in model.named_parameters():
        if parameter.numel():
            assert parameter.grad is not None, key
            assert parameter.grad.any(), key
    before = eval_logits(model, batch)
    for feature in range(2):
        changed = select_rows(batch, list(range(64)))
        changed.dense[4, feature] += 1
        moved = (eval_logits(model, changed) - before).abs() > 1e-6
        assert moved.nonzero().flatten().tolist() == [4]


@every_case
def test_rows_do_not_see_each_other(name, schema):
    model, batch = make_model(name, schema), random_batch(schema, 12)
    whole = eval_logits(model, batch)
    torch.testing.assert_close(eval_logits(model, select_rows(batch, [5])), whole[5:6], rtol=1e-4, atol=1e-5)
    order = [7, 0, 11, 3]
    torch.testing.assert_close(eval_logits(model, select_rows(batch, order)), whole[order], rtol=1e-4, atol=1e-5)


@every_case
def test_every_input_of_a_row_matters_to_its_logit_alone(name, schema):
    model, batch = make_model(name, schema), random_batch(schema, 12)
    before = eval_logits(model, batch)
    others = torch.arange(12) != 4

    def check(changed, what):
        after = eval_logits(model, changed)
        torch.testing.assert_close(after[others], before[others], rtol=1e-4, atol=1e-5)
        assert abs(after[4] - before[4]) > 1e-6, what

    for i, field in enumerate(schema.single_valued):
        changed = select_rows(batch, list(range(12)))
        size = schema.vocabularies[field.vocabulary]
        ids = changed.sparse.values()  # single-valued fields come first, 12 ids each
        ids[i * 12 + 4] = (ids[i * 12 + 4] + 1) % size
        check(changed, field.name)
    for j, feature in enumerate(schema.dense):
        changed = select_rows(batch, list(range(12)))
        changed.dense[4, j] += 1
        check(changed, feature)


@every_case
@pytest.mark.parametrize("training", [False, True])
def test_logits_under_autocast_are_float32_and_near(name, schema, training):
    model, batch = make_model(name, schema, init_std=0.3), random_batch(schema, 64)
    model.train(training)
    exact = model(batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch)
    assert rounded.dtype == exact.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max() + 0.01


@every_case
def test_empty_batch(name, schema):
    model = make_model(name, schema)
    out = eval_logits(model, random_batch(schema, 0))
    assert out.shape == (0,)
    assert out.dtype == torch.float32


@every_case
def test_rows_with_nothing_in_them(name, schema):
    """Multi-valued fields and histories without a single id."""
    model, batch = make_model(name, schema), random_batch(schema, 6)
    single = len(schema.single_valued) * 6
    lengths = batch.sparse.lengths().clone()
    lengths[single:] = 0
    batch.sparse = KeyedJaggedTensor(schema.sparse_keys, batch.sparse.values()[:single], lengths=lengths, stride=6)
    if schema.sequences:
        none = torch.zeros(6 * len(schema.sequences), dtype=torch.int64)
        batch.sequences = KeyedJaggedTensor(schema.sequence_keys, none[:0], lengths=none, stride=6)
    assert torch.isfinite(eval_logits(model, batch)).all()


@pytest.mark.parametrize("name", model_registry.names())
def test_options_explain_themselves(name):
    for key, field in model_registry.get(name).Config.model_fields.items():
        assert key == "name" or field.description, key


@pytest.mark.parametrize("name", model_registry.names())
def test_backend_of_another_width_is_refused(name):
    schema = SCHEMAS["sequences"]
    model = make_model(name, schema)
    cls = type(model)
    wider = cls.Config.model_validate({"name": name, "embedding_dim": 9})
    if cls.embedding_width(wider) == model.embedding.width:
        assert cls.embedding_width(wider) == 1  # a model without vectors takes any embedding_dim
        return
    with pytest.raises(ValueError, match="columns of each id"):
        build_model(wider, schema, model.embedding.backend)
