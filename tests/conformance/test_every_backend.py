"""What every embedding backend must do. A backend joins by being registered; extra rows below try its options."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
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

from recsys_emb.embeddings import make_embedding_bag_collection, make_embedding_collection, plan_backend
from recsys_emb.embeddings.base import EmbeddingBackend, GroupSpec, TableSpec, backend_registry
from recsys_emb.embeddings.tables import EmbeddingTable
from recsys_emb.errors import UserError
from tests.largest import Largest

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("hash", {"balance": 1.0}),
    ("multi_hash", {"probes": 4}),
    ("multi_hash", {"importance": True}),
    ("qr", {"combine": "add", "partitions": 3}),
    ("qr", {"combine": "concat"}),
    ("unified", {"combine": "sum", "probes": 3}),
    ("unified", {"probes": 1}),
    ("mixed_dim", {"by": "size"}),
    ("mixed_dim", {"round_to_power_of_two": False, "blocks": 3}),
]
CASES = [(name, {}) for name in backend_registry.names()] + VARIANTS
every_backend = pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{o}" if o else n for n, o in CASES])

SIZES = (700, 3, 50, 2000, 1)
SPEC = GroupSpec(tuple(TableSpec(f"t{i}", n, init_std=0.05) for i, n in enumerate(SIZES)), 16)
STATS = {t.name: np.sort(np.random.default_rng(1).zipf(1.5, t.num_embeddings))[::-1].copy() for t in SPEC.tables}


def build(name: str, options: dict[str, Any], spec: GroupSpec = SPEC, device: str = "cpu") -> EmbeddingBackend[Any]:
    torch.manual_seed(0)
    cls, config = plan_backend(name, spec, None, STATS, options)
    return cls(spec, config, device)


def all_rows(backend: EmbeddingBackend[Any]) -> list[Tensor]:
    return [torch.cat(list(backend.rows(i))) for i in range(len(backend.spec.tables))]


# -- sizing -----------------------------------------------------------------------------------------------------------

CRITEO = (1461, 584, 10131227, 2202608, 306, 24, 12518, 634, 4, 93146, 5684, 8351593, 3195)
CRITEO += (28, 14993, 5461306, 11, 5653, 2173, 4, 7046547, 18, 16, 286181, 105, 142572)
LARGE = GroupSpec(tuple(TableSpec(f"C{i}", n) for i, n in enumerate(CRITEO)), 17)


def least_reachable(name: str, options: dict[str, Any], spec: GroupSpec, stats: Any) -> int:
    with pytest.raises(UserError) as error:
        plan_backend(name, spec, 1, stats, options)
    match = re.search(r"the least it can reach is ([\d,]+) bytes", str(error.value))
    assert match, error.value
    return int(match[1].replace(",", ""))


@every_backend
@pytest.mark.parametrize("ratio", [0.5, 0.1, 0.01, 0.001])
@pytest.mark.parametrize("spec", [SPEC, LARGE], ids=["small", "33.8 million ids"])
def test_planned_bytes_never_exceed_the_budget(
    name: str, options: dict[str, Any], ratio: float, spec: GroupSpec
) -> None:
    budget, stats = int(ratio * spec.full_bytes), None if spec is LARGE else STATS
    least = least_reachable(name, options, spec, stats)
    if budget < least:  # what the error promises must be true, and tight
        with pytest.raises(UserError, match="the least it can reach"):
            plan_backend(name, spec, least - 4, stats, options)
        budget = least
    cls, config = plan_backend(name, spec, budget, stats, options)
    backend = cls(spec, config, "meta")
    assert backend.serving_bytes() <= budget
    assert sum(line.bytes for line in backend.describe()) == backend.serving_bytes()
    assert {line.table.split("[")[0] for line in backend.describe()} - {"(shared)"} == {t.name for t in spec.tables}


@every_backend
def test_planned_bytes_are_those_of_the_built_and_compacted_module(name: str, options: dict[str, Any]) -> None:
    planned = build(name, options, device="meta")
    compacted = build(name, options).compact()
    stored = sum(t.numel() * t.element_size() for t in compacted.state_dict().values())
    assert planned.serving_bytes() == compacted.serving_bytes() == stored
    assert all(p.is_meta for p in planned.parameters())


@every_backend
def test_compacted_rows_are_the_rows(name: str, options: dict[str, Any]) -> None:
    backend = build(name, options).eval()
    before = all_rows(backend)
    for old, new, size in zip(before, all_rows(backend.compact()), SIZES):
        assert old.shape == (size, 16)
        torch.testing.assert_close(new, old)


@every_backend
def test_sizes_given_by_hand_are_kept_and_checked(name: str, options: dict[str, Any]) -> None:
    _, config = plan_backend(name, SPEC, None, STATS, options)
    cls, again = plan_backend(name, SPEC, None, STATS, config.model_dump())
    assert again == config
    needed = cls(SPEC, config, "meta").serving_bytes()
    with pytest.raises(UserError, match="bytes"):
        plan_backend(name, SPEC, needed - 4, STATS, config.model_dump())


@every_backend
def test_vectors_start_at_the_scale_of_a_full_table(name: str, options: dict[str, Any]) -> None:
    rows = all_rows(build(name, options))
    for table in (rows[0], rows[3]):
        assert 0.03 < table.std() < 0.08
        assert 0.2 < (table > 0).float().mean() < 0.8


# -- ids --------------------------------------------------------------------------------------------------------------


@st.composite
def some_ids(draw: st.DrawFn) -> list[list[int]]:
    """For every table a few ids, or none; the first and the last often."""
    edges = [st.sampled_from([0, n - 1]) | st.integers(0, n - 1) for n in SIZES]
    return [draw(st.lists(ids, max_size=4)) for ids in edges]


@pytest.fixture
def with_rows(name: str, options: dict[str, Any]) -> tuple[EmbeddingBackend[Any], list[Tensor]]:
    backend = build(name, options).eval()
    return backend, all_rows(backend)


@every_backend
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=some_ids())
def test_a_lookup_gives_each_ids_row_whatever_the_counts(
    with_rows: tuple[EmbeddingBackend[Any], list[Tensor]], ids: list[list[int]]
) -> None:
    backend, rows = with_rows
    flat = torch.tensor([x for table in ids for x in table], dtype=torch.int64)
    out = backend(flat, torch.tensor([len(x) for x in ids]))
    assert out.dtype == torch.float32
    assert out.shape == (len(flat), 16)
    expected = torch.cat([rows[t][torch.tensor(x, dtype=torch.int64)] for t, x in enumerate(ids)])
    torch.testing.assert_close(out, expected)


@every_backend
@pytest.mark.parametrize(("table", "bad"), [(0, 700), (0, -1), (3, 2000), (4, 1), (3, 2**63 - 1)])
def test_an_id_out_of_range_names_table_id_and_size(name: str, options: dict[str, Any], table: int, bad: int) -> None:
    backend = build(name, options)
    counts = torch.zeros(len(SIZES), dtype=torch.int64)
    counts[table] = 2
    with pytest.raises(IndexError, match=rf"'t{table}': id {bad} is outside 0\.\.{SIZES[table] - 1}$"):
        backend(torch.tensor([0, bad]), counts)


# -- training ---------------------------------------------------------------------------------------------------------


@every_backend
def test_a_step_costs_what_the_batch_costs(name: str, options: dict[str, Any]) -> None:
    spec = GroupSpec((TableSpec("a", 300_000), TableSpec("b", 200_000), TableSpec("c", 7)), 4)
    stats = {t.name: np.arange(t.num_embeddings, 0, -1) for t in spec.tables}
    cls, config = plan_backend(name, spec, None, stats, options)
    backend = cls(spec, config)
    for module in backend.modules():
        if isinstance(module, EmbeddingTable):
            module.sparse_grad = True
    ids = torch.cat([torch.randint(0, t.num_embeddings, (20,)) for t in spec.tables])
    with Largest(backend) as largest:
        loss = backend(ids, torch.tensor([20, 20, 20])).square().sum()
        if (aux := backend.aux_loss()) is not None:
            loss = loss + aux
        loss.backward()
        backend.after_backward(0)
    assert 240 <= largest.numel < 5000  # 60 ids x 4 columns; the tables have 2 million floats
    assert any(p.grad is not None and p.grad.is_sparse for p in backend.parameters())


@every_backend
def test_large_weights_are_embedding_tables(name: str, options: dict[str, Any]) -> None:
    backend = build(name, options, device="meta", spec=GroupSpec((TableSpec("a", 10**6), TableSpec("b", 10**5)), 16))
    tables = [m.weight for m in backend.modules() if isinstance(m, EmbeddingTable)]
    others = [p for p in backend.parameters() if not any(p is t for t in tables)]
    assert tables
    assert sum(p.numel() for p in others) < 5000


# -- TorchRec ---------------------------------------------------------------------------------------------------------


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
def test_state_dict_round_trip_and_meta_device(name: str, options: dict[str, Any]) -> None:
    first, second = ebc(name, options).eval(), ebc(name, options, device="meta").eval()
    assert second.device.type == "meta"
    assert all(p.is_meta for p in second.parameters())
    second.to_empty(device="cpu").load_state_dict(first.state_dict())
    assert torch.equal(first(batch()).values(), second(batch()).values())


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
    with pytest.raises(UserError, match=r"tables of 8 columns"):
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


# -- hashed ids -------------------------------------------------------------------------------------------------------

HASHED = GroupSpec(tuple(TableSpec(f"t{i}", 2**63 - 1, init_std=0.05, hashed=True) for i in range(3)), 16)


@pytest.mark.parametrize("name", backend_registry.names())
def test_hashed_ids_are_served_within_bytes_or_refused_in_one_line(name: str) -> None:
    options = {"modulus": 10_000} if name == "qr" else {}
    if backend_registry.get(name).needs_id_list:
        with pytest.raises(UserError, match=f"{name} needs the list of ids"):
            plan_backend(name, HASHED, 100_000, None, options)
        return
    for budget in (None, int(0.1 * HASHED.full_bytes)):
        with pytest.raises(UserError, match="give bytes such as 20MB"):
            plan_backend(name, HASHED, budget, None, options)
    cls, config = plan_backend(name, HASHED, 100_000, None, options)
    backend = cls(HASHED, config)
    assert 90_000 < backend.serving_bytes() <= 100_000
    out = backend(torch.tensor([0, 2**62, 2**63 - 2, 5, 5]), torch.tensor([2, 1, 2]))
    assert out.shape == (5, 16)
    assert torch.equal(out[3], out[4])
    assert len(out.unique(dim=0)) == 4
    with pytest.raises(UserError, match="63-bit hashes"):
        next(backend.rows(0))
