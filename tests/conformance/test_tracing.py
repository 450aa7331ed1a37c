"""TorchRec's pipelines and inference trace its collections: so they do ours, every backend, trained and compacted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, EmbeddingConfig, KeyedJaggedTensor, PoolingType
from torchrec.fx import symbolic_trace
from torchrec.inference.modules import quantize_embeddings
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM
from torchrec.quant import EmbeddingBagCollection as QuantEmbeddingBagCollection

from recsys_emb.embeddings import make_embedding_collection
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.embeddings.posttraining import list_posttraining
from recsys_emb.errors import UserError
from tests.conformance.cases import CASES, every_backend
from tests.conformance.test_every_collection import KJTS, bag_configs, batch, ebc

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TorchScript and torch.ao.quantization
    pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.quantize_per_tensor)"),
]

STATS = {t.name: np.arange(t.num_embeddings, 0, -1) for t in bag_configs()}
GAPS = {t.name: np.arange(t.num_embeddings) % 3 for t in bag_configs()}  # unseen ids between seen ones
NARROW = {"widths": {"t1": 0, "t2": 3, "t3": 8}}
COMPACTED: list[tuple[str, dict[str, Any]]] = [
    *((method, {"stats": STATS}) for method in list_posttraining()),
    ("drop_unseen", {"stats": GAPS}),
    ("prune", {"structure": "rows_columns", "budget": 0.3}),
    ("int8", {"range": "symmetric"}),
]


def sequences(name: str, options: dict[str, Any]) -> Any:
    tables = [
        EmbeddingConfig(name=c.name, embedding_dim=8, num_embeddings=c.num_embeddings, feature_names=c.feature_names)
        for c in bag_configs()
    ]
    return make_embedding_collection(tables, name, stats=STATS, need_indices=True, **options)


SEQUENCES = type(sequences("full", {}))


def vectors(out: Any) -> Tensor:
    """All vectors of either collection's output."""
    return torch.cat([jagged.values() for jagged in out.values()]) if isinstance(out, dict) else out.values()


def same(collection: nn.Module, traced: Callable[..., Any]) -> None:
    for kjt in KJTS.values():
        torch.manual_seed(1)  # some methods draw at random in training
        expected = vectors(collection(kjt))
        torch.manual_seed(1)
        torch.testing.assert_close(vectors(traced(kjt)), expected)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """TorchScript keeps every class that it has compiled, tens of megabytes a test."""
    yield
    torch._C._jit_clear_class_registry()
    torch.jit._state._clear_class_state()
    torch.jit._recursive.concrete_type_store = torch.jit._recursive.ConcreteTypeStore()


@pytest.mark.parametrize("make", [ebc, sequences], ids=["bags", "sequences"])
@pytest.mark.parametrize(
    ("name", "options"),
    [*CASES, ("field_dim", NARROW), ("matryoshka", NARROW), ("optembed", {"budget": 0.3}), ("pep", {"budget": 0.3})],
)
def test_fx_and_torchscript_give_what_the_collection_gives(make: Any, name: str, options: dict[str, Any]) -> None:
    trained = make(name, options)
    for collection in (trained, trained.eval(), trained.compact()):
        graph = symbolic_trace(collection)
        same(collection, graph)
        same(collection, torch.jit.script(graph))


@pytest.mark.parametrize("make", [ebc, sequences], ids=["bags", "sequences"])
@pytest.mark.parametrize(("method", "options"), COMPACTED)
def test_fx_and_torchscript_of_post_training_forms(make: Any, method: str, options: dict[str, Any]) -> None:
    collection = make("full", {}).compact(method, **options)
    graph = symbolic_trace(collection)
    same(collection, graph)
    same(collection, torch.jit.script(graph))


def test_a_collection_is_scripted_as_it_is() -> None:
    collection = ebc("low_rank", {})
    scripted = torch.jit.script(collection)
    same(collection, scripted)
    with pytest.raises(torch.jit.Error, match=r"table 't1': id 60 is outside 0\.\.59"):  # type: ignore[attr-defined]
        scripted(KeyedJaggedTensor(["f1", "f2", "f3", "f4"], torch.tensor([60, 0, 0, 0]), lengths=torch.ones(4).long()))


def test_weights_and_inverse_indices_go_through_torchscript() -> None:
    tables = [c for c in bag_configs() if c.pooling == PoolingType.SUM]
    collection = ebc("hash", {}, tables, is_weighted=True)
    scripted = torch.jit.script(symbolic_trace(collection))
    kjt = KeyedJaggedTensor(
        ["f2", "f1", "f4"],
        torch.tensor([3, 4, 5, 1]),
        torch.tensor([0.5, 2.0, 1.0, 3.0]),
        lengths=torch.tensor([2, 1, 0, 1]),
        stride_per_key_per_rank=[[1], [2], [1]],
        inverse_indices=(["f2", "f1", "f4"], torch.tensor([[0, 0, 0], [1, 0, 1], [0, 0, 0]])),
    )
    torch.testing.assert_close(scripted(kjt).values(), collection(kjt).values())


@pytest.mark.parametrize("name", backend_registry.names())
def test_torchrecs_models_are_traced_scripted_and_exported(name: str) -> None:
    tables = [
        EmbeddingBagConfig(name="t1", embedding_dim=8, num_embeddings=100, feature_names=["f1", "f3"]),
        EmbeddingBagConfig(name="t2", embedding_dim=8, num_embeddings=40, feature_names=["f2"]),
    ]
    ids = torch.tensor([1, 2, 4, 5, 4, 3, 2, 9, 1, 2, 3])
    inputs = torch.rand(2, 10), KeyedJaggedTensor(["f1", "f3", "f2"], ids, lengths=torch.tensor([2, 2, 2, 2, 2, 1]))
    dlrm = DLRM(ebc(name, {}, tables), dense_in_features=10, dense_arch_layer_sizes=[8], over_arch_layer_sizes=[4, 1])
    deepfm = SimpleDeepFMNN(10, ebc(name, {}, tables), hidden_layer_size=4, deep_fm_dimension=5)
    for model in (dlrm.eval(), deepfm.eval()):
        expected = model(*inputs)
        graph = symbolic_trace(model)
        torch.testing.assert_close(graph(*inputs), expected)
        torch.testing.assert_close(torch.jit.script(graph)(*inputs), expected)
        exported = torch.export.export(model, inputs, strict=False)
        torch.testing.assert_close(exported.module()(*inputs), expected)


# -- the meta device --------------------------------------------------------------------------------------------------


@every_backend
def test_a_forward_on_the_meta_device_gives_shapes(name: str, options: dict[str, Any]) -> None:
    kjt = batch(keys="f4 f1 f3 f2")
    meta = KeyedJaggedTensor(kjt.keys(), kjt.values().to("meta"), lengths=kjt.lengths().to("meta"))
    trained = ebc(name, options, device="meta")
    for collection in (trained, trained.eval()):
        out = collection(meta)
        assert out.values().is_meta
        assert out.values().shape == (7, 40)
        assert out.keys() == ["f1", "f2@t1", "f2@t2", "f3", "f4"]


@every_backend
def test_torchs_default_device_is_where_a_collection_is_made(name: str, options: dict[str, Any]) -> None:
    with torch.device("meta"):
        made = ebc(name, options)
    assert made.device.type == "meta"
    assert all(p.is_meta for p in made.parameters())
    made = made.to_empty(device="cpu")
    torch.manual_seed(0)
    made.reset_parameters()
    torch.testing.assert_close(made.eval()(batch()).values(), ebc(name, options).eval()(batch()).values())


# -- rows by table name, and quantisation -----------------------------------------------------------------------------


def test_full_tables_are_seen_by_name() -> None:
    collection, plain = ebc("full", {}), ebc("full", {}).to_embedding_bag_collection()
    assert list(collection.embedding_bags) == list(plain.embedding_bags) == ["t1", "t2", "t3"]
    for name, bag in plain.embedding_bags.items():
        assert torch.equal(collection.embedding_bags[name].weight, bag.weight)
    with torch.no_grad():
        collection.embedding_bags["t2"].weight[5] = 7
    assert torch.equal(collection.to_embedding_bag_collection().embedding_bags["t2"].weight[5], torch.full((8,), 7.0))
    assert sequences("full", {}).embeddings["t3"].weight.shape == (5, 8)
    assert ebc("full", {}, device="meta").embedding_bags["t1"].weight.is_meta
    with pytest.raises(UserError, match=r"hash stores no plain rows of 't1'.*to_embedding_bag_collection\(\) makes"):
        ebc("hash", {}).embedding_bags["t1"]


def test_torchrecs_quantisation_is_told_to_take_plain_rows() -> None:
    refused = r"put collection\.to_embedding_bag_collection\(\) in the place of BackendEmbeddingBagCollection first"
    model = nn.Sequential(ebc("hash", {}))
    for inplace in (True, False):
        with pytest.raises(UserError, match=refused):
            quantize_embeddings(model, torch.qint8, inplace=inplace)
    config = torch.ao.quantization.QConfig(
        activation=torch.ao.quantization.PlaceholderObserver.with_args(dtype=torch.float),
        weight=torch.ao.quantization.PlaceholderObserver.with_args(dtype=torch.qint8),
    )
    with pytest.raises(UserError, match=refused):
        model[0].qconfig = config
    with pytest.raises(UserError, match=r"to_embedding_collection\(\)"):
        quantize_embeddings(
            nn.Sequential(sequences("full", {})), torch.qint8, inplace=True, additional_qconfig_spec_keys=[SEQUENCES]
        )
    plain = nn.Sequential(model[0].to_embedding_bag_collection())
    assert isinstance(quantize_embeddings(plain, torch.qint8, inplace=True)[0], QuantEmbeddingBagCollection)


def test_a_pass_that_means_other_layers_leaves_a_collection_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 3), ebc("hash", {}))
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    assert type(quantised[0]) is not nn.Linear
    assert torch.equal(quantised[1](batch()).values(), model[1](batch()).values())
