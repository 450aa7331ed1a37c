"""FinalMLP against its formula; what its options may name."""

import numpy as np
import pytest
from pydantic import ValidationError

from recsys_emb.errors import UserError
from tests.builders import make_model, random_batch, tiny_schema
from tests.models.oracle import array, logits, network, rows

SCHEMA = tiny_schema(dense=2, multi_valued=True)
FIELDS = ["user", "item", "category", "city", "tags"]


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("contexts", [((), ()), (("user",), ("item", "tags"))])
def test_gated_streams_are_fused(heads, contexts):
    first, second = contexts
    options = {"hidden": [6, 4], "second_hidden": [8], "gate_hidden": [3], "heads": heads}
    model = make_model("finalmlp", SCHEMA, first_context=first, second_context=second, **options)
    batch, expected = random_batch(SCHEMA, 6), []
    for r in rows(model, SCHEMA, batch):
        flat, streams = np.concatenate([r.fields.ravel(), r.dense]), []
        for gate, stream, names in zip(model.gates, model.streams, contexts):
            context = np.concatenate([r.fields[FIELDS.index(n)] for n in names]) if names else array(gate.constant)
            streams.append(network(stream, flat * 2 / (1 + np.exp(-network(gate.mlp, context)))))
        x, y = streams
        logit = network(model.fusion.linear, np.concatenate([x, y]))[0]
        per_x, per_y = 4 // heads, 8 // heads
        for h, weight in enumerate(array(model.fusion.weight)):
            for i in range(per_x):
                for j in range(per_y):
                    logit += x[h * per_x + i] * weight[i, j] * y[h * per_y + j]
        expected.append(logit)
    np.testing.assert_allclose(logits(model, batch), expected, rtol=1e-4, atol=1e-4)


def test_second_stream_is_as_wide_as_the_first_unless_told():
    model = make_model("finalmlp", SCHEMA, hidden=[6, 4])
    assert [s.out_features for s in model.streams] == [4, 4]


def test_heads_that_do_not_divide_and_unknown_fields_are_refused():
    with pytest.raises(ValidationError, match="heads 3 must divide the last of each stream's units, but not 4"):
        make_model("finalmlp", SCHEMA, hidden=[6], second_hidden=[4], heads=3)
    with pytest.raises(UserError, match=r"model.second_context: the dataset has no field 'itme'; it has user, item"):
        make_model("finalmlp", SCHEMA, second_context=["itme"])
    with pytest.raises(UserError, match=r"no field 'item_history'"):  # not one of the pooled fields' names
        make_model("finalmlp", SCHEMA, first_context=["item_history"])
