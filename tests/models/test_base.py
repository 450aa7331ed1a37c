"""What the base class does for every model."""

import pytest
import torch
import torch.nn.functional as F

from recsys_emb.errors import UserError
from recsys_emb.models.base import CTRModel, Inputs, ModelConfig, build_model, model_registry
from recsys_emb.training.task import ClickThrough, TaskLosses
from tests.builders import make_model, random_batch, tiny_schema


def test_flat_keeps_the_order_of_fields_then_dense_then_more():
    fields, dense, more = torch.randn(3, 2, 4), torch.randn(3, 5), torch.randn(3, 1)
    flat = Inputs(dense, fields, None, {}).flat(more)
    for b in range(3):
        assert flat[b].tolist() == [*fields[b, 0].tolist(), *fields[b, 1].tolist(), *dense[b].tolist(), more[b].item()]
    assert torch.equal(Inputs(dense[:, :0], fields, None, {}).flat(), fields.reshape(3, 8))


def test_first_order_is_the_last_column():
    schema = tiny_schema(dense=0)
    model, batch = make_model("fm", schema), random_batch(schema, 5)
    seen = {}
    model.logits = lambda x: seen.setdefault("x", x).dense.sum(1)
    model(batch)
    vectors, _ = model.embedding(batch.sparse, None)
    assert model.embedding.width == 5
    assert torch.equal(seen["x"].fields, vectors[..., :4])
    assert torch.equal(seen["x"].first_order, vectors[..., 4])


def test_logits_in_half_precision_leave_as_float32():
    class Half(CTRModel):
        def logits(self, x):
            return x.fields.sum((1, 2)).bfloat16()

    schema = tiny_schema()
    model = make_model("autoint", schema)
    half = Half(ModelConfig(name="half", embedding_dim=4), schema, model.embedding)
    assert half(random_batch(schema, 5)).dtype == torch.float32


def test_unknown_model_is_a_one_line_error():
    schema = tiny_schema()
    with pytest.raises(UserError, match=r"unknown model 'deepmf'.*did you mean 'deepfm'.*available: autoint"):
        build_model(ModelConfig(name="deepmf"), schema, make_model("fm", schema).embedding.backend)


def test_built_in_models():
    names = {"lr", "fm", "wide_deep", "deepfm", "dcnv2", "dlrm", "autoint", "autoint_plus", "din"}
    names |= {"fcn", "finalmlp", "finalnet", "gdcn", "masknet", "qnn_alpha", "dien", "bst"}
    assert names <= set(model_registry.names())


def test_scored_gives_what_forward_gives_and_the_models_own_loss():
    class Two(CTRModel):
        def logits(self, x):
            return x.fields.sum((1, 2)).bfloat16()

        def logits_and_loss(self, x, losses):
            logits = self.logits(x)
            return logits, losses.loss(2 * logits) + losses.distance(logits, -logits)

    schema = tiny_schema()
    batch, one = random_batch(schema, 5), make_model("autoint", schema)
    losses = TaskLosses(ClickThrough(), batch)
    logits, more = one.scored(batch, losses)
    assert more is None
    assert torch.equal(logits, one(batch))
    two = Two(ModelConfig(name="two", embedding_dim=4), schema, one.embedding)
    logits, more = two.scored(batch, losses)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, two(batch))
    soft = torch.sigmoid(-logits)
    own = -(batch.labels * F.logsigmoid(2 * logits) + (1 - batch.labels) * F.logsigmoid(-2 * logits))
    apart = -(soft * F.logsigmoid(logits) + (1 - soft) * F.logsigmoid(-logits))
    torch.testing.assert_close(more, (own + apart).sum(), rtol=2e-2, atol=1e-2)  # 2 * logits is rounded
