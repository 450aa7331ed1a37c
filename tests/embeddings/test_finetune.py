"""A form that is trained on: its floats learn, its codes stay, and what is stored is what was promised."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys_emb.embeddings import plan_backend
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, TableSpec
from recsys_emb.embeddings.finetune import TrainableForm
from recsys_emb.embeddings.forms import Form
from recsys_emb.embeddings.posttraining import compress, list_posttraining

SPEC = GroupSpec((TableSpec("a", 60, init_std=1.0), TableSpec("b", 25, init_std=1.0)), 6)
STATS = {"a": np.arange(60)[::-1].copy(), "b": np.arange(25)[::-1].copy()}
IDS, COUNTS = torch.cat([torch.arange(60), torch.arange(25)]), [60, 25]


def compressed(method: str) -> EmbeddingBackend:
    torch.manual_seed(1)
    cls, config = plan_backend("full", SPEC)
    return compress(cls(SPEC, config), method, None, STATS)


@pytest.mark.parametrize("method", list_posttraining())
def test_floats_learn_codes_stay_and_bytes_are_those_of_the_form(method: str) -> None:
    form = compressed(method)
    before = {name: (t.dtype, t.clone()) for name, t in form.state_dict().items()}
    rows, size, lines = form.lookup(IDS, COUNTS).detach().float(), form.serving_bytes(), form.describe()
    trained = TrainableForm(form)
    assert trained.serving_bytes() == size
    assert trained.describe() == lines
    torch.testing.assert_close(trained.lookup(IDS, COUNTS).detach(), rows, rtol=0, atol=1e-6)

    target = torch.randn(len(IDS), 6)
    optimizer = torch.optim.Adam(trained.parameters(), 0.01)
    losses = []
    for _ in range(30):
        loss = (trained.lookup(IDS, COUNTS) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]

    learned = trained.lookup(IDS, COUNTS).detach()
    served = trained.compact()
    after = served.state_dict()
    assert {name: t.dtype for name, t in after.items()} == {name: dtype for name, (dtype, _) in before.items()}
    for name, (dtype, value) in before.items():
        assert torch.equal(after[name], value) != dtype.is_floating_point or not value.numel()
    assert served.serving_bytes() == size == sum(t.nbytes for t in after.values())
    torch.testing.assert_close(served.lookup(IDS, COUNTS).detach(), learned, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", list_posttraining())
def test_a_form_is_built_anew_from_what_says_it(method: str) -> None:
    form = compressed(method)
    assert Form.of(form, "full").method == method
    trained = TrainableForm(form)
    said = Form.model_validate(Form.of(trained, "full").model_dump(mode="json"))
    built = said.build(SPEC)
    built.load_state_dict(trained.state_dict())
    torch.testing.assert_close(built.lookup(IDS, COUNTS), trained.lookup(IDS, COUNTS), rtol=0, atol=0)
    assert said.trainable
    assert built.serving_bytes() == trained.serving_bytes()
