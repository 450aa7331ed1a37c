"""What TorchRec's collections do, ours must do with every backend: the same keys, lengths, shapes, order and values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    PoolingType,
)
from torchrec.models.deepfm import SimpleDeepFMNN
from torchrec.models.dlrm import DLRM

from recsys_emb.embeddings import make_embedding_bag_collection, make_embedding_collection
from recsys_emb.embeddings.base import backend_registry
from recsys_emb.embeddings.posttraining import list_posttraining
from recsys_emb.errors import BudgetTooSmall, UserError
from tests.conformance.cases import every_backend


def bag_configs(dim: int = 8) -> list[EmbeddingBagConfig]:
    """A shared table (f1, f2), a shared feature (f2 in t1 and t2), both poolings."""
    return [
        EmbeddingBagConfig(name="t1", embedding_dim=dim, num_embeddings=60, feature_names=["f1", "f2"]),
        EmbeddingBagConfig(
            name="t2", embedding_dim=dim, num_embeddings=300, feature_names=["f2", "f3"], pooling=PoolingType.MEAN
        ),
        EmbeddingBagConfig(name="t3", embedding_dim=dim, num_embeddings=5, feature_names=["f4"]),
    ]


def batch(rows: int = 7, longest: int = 3, keys: str = "f1 f2 f3 f4", weights: bool = False) -> KeyedJaggedTensor:
    """Bags of 0 to ``longest`` ids."""
    g = torch.Generator().manual_seed(rows)
    most = {"f1": 60, "f2": 60, "f3": 300, "f4": 5, "other": 10**9}
    names = keys.split()
    lengths = torch.randint(0, longest + 1, (len(names), rows), generator=g)
    values = torch.cat([torch.randint(0, most[k], (int(n.sum()),), generator=g) for k, n in zip(names, lengths)])
    weight = torch.rand(len(values), generator=g) if weights else None
    return KeyedJaggedTensor(names, values, weight, lengths=lengths.flatten())


KJTS = {
    "in order": batch(),
    "permuted keys": batch(keys="f3 f1 f4 f2"),
    "extra keys": batch(keys="other f4 f1 f2 f3"),
    "one id per bag": KeyedJaggedTensor(["f1", "f2", "f3", "f4"], torch.arange(8) % 5, lengths=torch.ones(8).long()),
    "all bags empty": batch(longest=0),
}


def ebc(name: str, options: dict[str, Any], tables: list[EmbeddingBagConfig] | None = None, **more: Any) -> Any:
    torch.manual_seed(0)
    tables = tables or bag_configs()
    stats = {t.name: np.arange(t.num_embeddings, 0, -1) for t in tables}
    return make_embedding_bag_collection(tables, name, stats=stats, **more, **options)


@every_backend
@pytest.mark.parametrize("kjt", KJTS.values(), ids=KJTS.keys())
def test_pooled_output_is_torchrecs(name: str, options: dict[str, Any], kjt: KeyedJaggedTensor) -> None:
    collection = ebc(name, options).eval()  # some methods draw at random in training
    plain = collection.to_embedding_bag_collection()
    assert type(plain) is EmbeddingBagCollection
    ours, theirs = collection(kjt), plain(kjt)
    assert ours.keys() == theirs.keys() == ["f1", "f2@t1", "f2@t2", "f3", "f4"]
    assert ours.length_per_key() == theirs.length_per_key()
    assert ours.values().shape == (kjt.stride(), 40)
    torch.testing.assert_close(ours.values(), theirs.values())


@every_backend
def test_an_empty_batch_has_no_rows(name: str, options: dict[str, Any]) -> None:
    out = ebc(name, options)(batch(rows=0))  # TorchRec's own to_dict() fails on it
    assert out.values().shape == (0, 40)
    assert sum(out.length_per_key()) == 40


@every_backend
def test_weighted_output_is_torchrecs(name: str, options: dict[str, Any]) -> None:
    tables = [c for c in bag_configs() if c.pooling == PoolingType.SUM]  # TorchRec averages without weights only
    collection = ebc(name, options, tables, is_weighted=True).eval()
    plain = collection.to_embedding_bag_collection()
    assert collection.is_weighted()
    assert plain.is_weighted()
    kjt = batch(keys="f4 f1 f3 f2", weights=True)
    torch.testing.assert_close(collection(kjt).values(), plain(kjt).values())


@every_backend
def test_unpooled_output_is_torchrecs(name: str, options: dict[str, Any]) -> None:
    tables = [
        EmbeddingConfig(name=c.name, embedding_dim=8, num_embeddings=c.num_embeddings, feature_names=c.feature_names)
        for c in bag_configs()
    ]
    stats = {t.name: np.arange(t.num_embeddings, 0, -1) for t in tables}
    collection = make_embedding_collection(tables, name, stats=stats, need_indices=True, **options).eval()
    plain = collection.to_embedding_collection()
    assert type(plain) is EmbeddingCollection
    assert collection.embedding_names_by_table() == plain.embedding_names_by_table()
    assert (collection.embedding_dim(), collection.need_indices()) == (plain.embedding_dim(), plain.need_indices())
    for kjt in KJTS.values():
        ours, theirs = collection(kjt), plain(kjt)
        assert list(ours) == list(theirs)
        for key, jagged in theirs.items():
            torch.testing.assert_close(ours[key].values(), jagged.values())
            assert torch.equal(ours[key].lengths(), jagged.lengths())
            assert torch.equal(ours[key].weights(), jagged.weights())


@every_backend
def test_deduplicated_batches_are_expanded_as_torchrec_does(name: str, options: dict[str, Any]) -> None:
    kjt = KeyedJaggedTensor(
        keys=["f1", "f2", "f3", "f4"],
        values=torch.tensor([3, 4, 5, 1, 2, 4, 0, 1]),
        lengths=torch.tensor([2, 1, 0, 1, 1, 1, 2]),
        stride_per_key_per_rank=[[2], [2], [1], [2]],
        inverse_indices=(
            ["f1", "f2", "f3", "f4"],
            torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]]),
        ),
    )
    collection = ebc(name, options).eval()
    out = collection(kjt).values()
    assert out.shape == (3, 40)
    torch.testing.assert_close(out, collection.to_embedding_bag_collection()(kjt).values())


@every_backend
def test_keys_of_unequal_batch_sizes_are_looked_up_as_torchrec_does(name: str, options: dict[str, Any]) -> None:
    kjt = KeyedJaggedTensor(
        keys=["f2", "f1", "f3", "f4"],
        values=torch.tensor([3, 4, 5, 1, 2, 4, 0]),
        lengths=torch.tensor([2, 1, 0, 1, 1, 0, 2]),
        stride_per_key_per_rank=[[2], [3], [1], [1]],
    )
    tables = [
        EmbeddingConfig(name=c.name, embedding_dim=8, num_embeddings=c.num_embeddings, feature_names=c.feature_names)
        for c in bag_configs()
    ]
    stats = {t.name: np.arange(t.num_embeddings, 0, -1) for t in tables}
    collection = make_embedding_collection(tables, name, stats=stats, **options).eval()
    ours, theirs = collection(kjt), collection.to_embedding_collection()(kjt)
    for key, jagged in theirs.items():
        torch.testing.assert_close(ours[key].values(), jagged.values())
        assert torch.equal(ours[key].lengths(), jagged.lengths())
    with pytest.raises(ValueError, match="'f1' has 3 bags and 'f2' has 2: without inverse_indices"):
        ebc(name, options)(kjt)


@every_backend
def test_state_dict_round_trip_and_meta_device(name: str, options: dict[str, Any]) -> None:
    first, second = ebc(name, options).eval(), ebc(name, options, device="meta").eval()
    assert second.device.type == "meta"
    assert all(p.is_meta for p in second.parameters())
    second.to_empty(device="cpu").load_state_dict(first.state_dict())
    assert torch.equal(first(batch()).values(), second(batch()).values())


@every_backend
def test_reset_parameters_fills_as_at_the_start(name: str, options: dict[str, Any]) -> None:
    emptied = ebc(name, options, device="meta").to_empty(device="cpu")
    for tensor in (*emptied.parameters(), *emptied.buffers()):
        tensor.data.fill_(7)
    torch.manual_seed(0)
    emptied.reset_parameters()
    fresh = ebc(name, options)  # from the same seed
    for (key, ours), theirs in zip(emptied.state_dict().items(), fresh.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), key


@every_backend
def test_gradients_reach_every_parameter_through_pooling(name: str, options: dict[str, Any]) -> None:
    collection = ebc(name, options)
    kjt = batch(rows=500)
    (collection(kjt).values() * torch.randn(500, 40)).sum().backward()
    for key, parameter in collection.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


def test_full_is_torchrec_in_values_and_gradients() -> None:
    plain = EmbeddingBagCollection(bag_configs())
    full = make_embedding_bag_collection(bag_configs(), "full")
    full.load_torchrec_state_dict(plain.state_dict())
    for kjt in KJTS.values():
        scale = torch.randn(kjt.stride(), 40)
        full.zero_grad()
        plain.zero_grad()
        a, b = full(kjt).values(), plain(kjt).values()
        torch.testing.assert_close(a, b)
        (a * scale).sum().backward()
        (b * scale).sum().backward()
        theirs = torch.cat([bag.weight.grad for bag in plain.embedding_bags.values()])
        torch.testing.assert_close(full.groups.backends[0].table.weight.grad, theirs)


def test_a_backend_that_shares_rows_refuses_plain_rows() -> None:
    plain = EmbeddingBagCollection(bag_configs())
    with pytest.raises(UserError, match="hash cannot take the rows"):
        make_embedding_bag_collection(bag_configs(), "hash").load_torchrec_state_dict(plain.state_dict())
    with pytest.raises(UserError, match="without the rows of table 't1'"):
        make_embedding_bag_collection(bag_configs()).load_torchrec_state_dict({})


def test_tables_of_several_widths_share_a_budget() -> None:
    tables = bag_configs()
    tables[2] = EmbeddingBagConfig(name="wide", embedding_dim=12, num_embeddings=500, feature_names=["f4"])
    full = sum(4 * t.num_embeddings * t.embedding_dim for t in tables)
    collection = make_embedding_bag_collection(tables, "hash", budget=0.3)
    assert collection(batch()).length_per_key() == [8, 8, 8, 8, 12]
    assert 0.25 * full < collection.serving_bytes() <= 0.3 * full
    with pytest.raises(UserError, match=f"the least it can reach is {full:,} bytes"):
        make_embedding_bag_collection(tables, "full", budget=0.3)


@pytest.mark.parametrize("name", backend_registry.names())
@pytest.mark.parametrize("model", ["dlrm", "deepfm"])
def test_torchrecs_models_train_on_it(name: str, model: str) -> None:
    torch.manual_seed(0)
    tables = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=8, num_embeddings=n, feature_names=[f"f{i}"])
        for i, n in enumerate((200, 40))
    ]
    collection = ebc(name, {}, tables)
    net = (
        DLRM(collection, dense_in_features=4, dense_arch_layer_sizes=[8, 8], over_arch_layer_sizes=[8, 1])
        if model == "dlrm"
        else SimpleDeepFMNN(4, collection, hidden_layer_size=8, deep_fm_dimension=4)
    )
    ids = torch.stack([torch.randint(0, 200, (64,)), torch.randint(0, 40, (64,))])
    kjt = KeyedJaggedTensor(["f0", "f1"], ids.flatten(), lengths=torch.ones(128, dtype=torch.int64))
    dense, labels = torch.randn(64, 4), (ids[0] % 2).float()
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    losses = []
    for _ in range(15):
        out = net(dense, kjt).squeeze(1)
        loss = torch.nn.functional.binary_cross_entropy(out.sigmoid() if model == "dlrm" else out, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02


# -- from a collection to what is served ------------------------------------------------------------------------------


def stored(module: torch.nn.Module) -> int:
    return sum(t.nbytes for t in module.state_dict().values())


@every_backend
@pytest.mark.parametrize("budget", [None, 0.6])
def test_the_compacted_collection_stores_what_was_promised(
    name: str, options: dict[str, Any], budget: float | None
) -> None:
    if name == "full" and budget is not None:
        return
    trained = ebc(name, options, bag_configs(16), budget=budget).eval()
    before = trained(batch()).values()
    served = trained.compact()
    assert torch.equal(trained(batch()).values(), before)
    assert stored(served) == served.serving_bytes() <= trained.serving_bytes()
    assert sum(line.bytes for line in served.describe()) == served.serving_bytes()
    kjt = batch()
    again, plain = served(kjt), served.to_embedding_bag_collection()(kjt)
    assert again.keys() == plain.keys()
    torch.testing.assert_close(again.values(), plain.values())
    if name != "optembed":  # which drops rows to get there
        torch.testing.assert_close(again.values(), trained(kjt).values())


@pytest.mark.parametrize("method", list_posttraining())
def test_a_collection_is_made_smaller_after_training(method: str) -> None:
    tables = [*bag_configs(), EmbeddingBagConfig(name="wide", embedding_dim=12, num_embeddings=500)]
    trained = ebc("full", {}, tables)
    before = stored(trained)
    counts = {t.name: np.arange(t.num_embeddings, 0, -1) for t in tables}
    served = trained.compact(method, budget=0.7, stats=counts)
    assert stored(served) == served.serving_bytes() <= 0.7 * trained.serving_bytes()
    assert stored(trained) == before
    ids = KeyedJaggedTensor(["f1", "f2", "f3", "f4", "wide"], torch.arange(10) % 5, lengths=torch.ones(10).long())
    found, plain = served(ids), served.to_embedding_bag_collection()(ids)
    assert found.length_per_key() == trained(ids).length_per_key()
    torch.testing.assert_close(found.values(), plain.values())


def test_compacting_by_no_method_takes_no_budget_and_no_options() -> None:
    for more in ({"budget": 0.5}, {"bits": 4}):
        with pytest.raises(UserError, match="belong to a post-training method"):
            ebc("full", {}).compact(**more)


@pytest.mark.parametrize("method", ["svd", "drop_unseen", "quantized_svd"])
def test_a_compacted_collection_of_several_widths_reaches_the_least_of_all(method: str) -> None:
    tables = bag_configs()
    tables[2] = EmbeddingBagConfig(name="wide", embedding_dim=12, num_embeddings=5, feature_names=["f4"])
    trained = make_embedding_bag_collection(tables)
    stats = {t.name: np.ones(t.num_embeddings, int) for t in tables}
    with pytest.raises(BudgetTooSmall, match="cannot fit in 20 bytes") as caught:
        trained.compact(method, 20, stats)
    least = caught.value.min_bytes
    served = trained.compact(method, least, stats)
    assert stored(served) == served.serving_bytes() <= least
    with pytest.raises(BudgetTooSmall):
        trained.compact(method, least - 1, stats)


def test_optembed_goes_through_its_stages_in_a_loop_of_ones_own() -> None:
    collection = ebc("optembed", {"generations": 1, "mutations": 2, "crossovers": 2}, bag_configs(16), budget=0.3)
    kjt = batch()
    optimizer = torch.optim.Adam(collection.parameters(), 0.01)
    loss = collection(kjt).values().square().mean()
    extra = collection.aux_loss()
    assert extra is not None
    assert extra.item() == pytest.approx(3 * 1e-4)  # alpha * exp(0) a table
    (loss + extra).backward()
    optimizer.step()
    found = collection.search(lambda: -collection(kjt).values().square().mean().item(), seed=1)
    assert found.training
    assert found.aux_loss() is None
    found(kjt).values().sum().backward()
    served = found.compact()
    assert stored(served) == served.serving_bytes() <= 0.3 * 4 * 16 * 365
    with pytest.raises(UserError, match="hash has no stage that searches"):
        ebc("hash", {}).search(lambda: 0.5)

    def unwritten() -> float:
        raise NotImplementedError("score is still to be written")

    with pytest.raises(NotImplementedError, match="score is still to be written"):  # the caller's own is left alone
        collection.search(unwritten)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_the_least_of_all_widths_together_is_reachable() -> None:
    tables = bag_configs()
    tables[2] = EmbeddingBagConfig(name="wide", embedding_dim=12, num_embeddings=5, feature_names=["f4"])
    for name in ("hash", "multi_hash", "qr"):
        with pytest.raises(BudgetTooSmall, match="cannot fit in 20 bytes") as caught:
            make_embedding_bag_collection(tables, name, budget=20)
        least = caught.value.min_bytes
        assert make_embedding_bag_collection(tables, name, budget=least).serving_bytes() <= least
        with pytest.raises(BudgetTooSmall):
            make_embedding_bag_collection(tables, name, budget=least - 1)


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ({"t9": np.ones(60, int)}, "stats: no table 't9'; there are t1, t2, t3"),
        ({"t1": np.ones(59, int)}, r"table 't1' has 60 ids.* got int64 \[59\]"),
        ({"t1": np.ones(61, int)}, r"table 't1' has 60 ids"),
        ({"t1": np.ones((60, 1), int)}, r"table 't1' has 60 ids"),
        ({"t1": np.ones(60)}, "as many integer counts; got float64"),
        ({"t1": []}, "table 't1' has 60 ids"),
    ],
)
def test_counts_that_do_not_fit_a_table_are_refused(stats: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_embedding_bag_collection(bag_configs(), "mixed_dim", budget=0.5, stats=stats)


def test_what_would_go_wrong_later_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="expected EmbeddingBagConfig, got EmbeddingConfig"):
        make_embedding_bag_collection([EmbeddingConfig(name="t", embedding_dim=4, num_embeddings=5)])  # type: ignore[list-item]
    rows = EmbeddingBagCollection(bag_configs()).state_dict()
    with pytest.raises(UserError, match="'t1' is on the meta device"):
        make_embedding_bag_collection(bag_configs(), device="meta").load_torchrec_state_dict(rows)
    floats = KeyedJaggedTensor(["f1", "f2", "f3", "f4"], torch.ones(4), lengths=torch.ones(4).long())
    with pytest.raises(TypeError, match=r"ids must be integers, got torch\.float32"):
        make_embedding_bag_collection(bag_configs())(floats)
