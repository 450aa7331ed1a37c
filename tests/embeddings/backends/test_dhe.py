"""dhe against torch's own layers on every id of a batch, without the detour by its different ids."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from recsys_emb.embeddings.backends.dhe import DHEBackend, DHEConfig, encoded
from recsys_emb.embeddings.base import GroupSpec, TableSpec
from recsys_emb.embeddings.budget import min_bytes, plan_backend
from recsys_emb.embeddings.hashing import mix, seeds

SPEC = GroupSpec((TableSpec("a", 5000, init_std=0.3), TableSpec("b", 40, init_std=0.3)), 6)


def by_layers(backend: DHEBackend) -> nn.Sequential:
    """The same network of torch's layers, with weights of its own."""
    layers: list[nn.Module] = []
    for hidden in backend.hidden:
        units, inputs = hidden.weight.shape
        linear, norm = nn.Linear(inputs, units, bias=False), nn.BatchNorm1d(units)
        linear.weight, norm.weight, norm.bias = (
            nn.Parameter(p.detach().clone()) for p in (hidden.weight, hidden.scale, hidden.shift)
        )
        norm.running_mean, norm.running_var = hidden.mean.clone(), hidden.var.clone()
        layers += [linear, norm, nn.Mish()]
    last = nn.Linear(backend.out.weight.shape[1], 6)
    last.weight, last.bias = (nn.Parameter(p.detach().clone()) for p in (backend.out.weight, backend.out.bias))
    return nn.Sequential(*layers, last)


def codes(backend: DHEBackend, ids: list[int], counts: list[int]) -> torch.Tensor:
    """The encoding of each id by itself."""
    table_seeds = torch.repeat_interleave(seeds(2), torch.tensor(counts))
    return torch.cat([encoded(mix(torch.tensor([i]) ^ s), backend.hash_seeds) for i, s in zip(ids, table_seeds)])


def test_vectors_statistics_and_gradients_are_those_of_torchs_layers_on_all_ids() -> None:
    torch.manual_seed(0)
    backend = DHEBackend(SPEC, DHEConfig(layers=3, hashes=12, hidden=9))
    oracle = by_layers(backend)
    ids, counts = [7, 7, 9, 4999, 7, 9, 7, 0], [6, 2]
    x, scale = codes(backend, ids, counts), torch.randn(8, 6)
    for _ in range(3):
        found, expected = backend(torch.tensor(ids), counts), oracle(x)
        torch.testing.assert_close(found, expected)
        (found * scale).sum().backward()
        (expected * scale).sum().backward()
    ours = [p.grad for h in backend.hidden for p in (h.weight, h.scale, h.shift)]
    for a, b in zip([*ours, backend.out.weight.grad, backend.out.bias.grad], oracle.parameters(), strict=True):
        torch.testing.assert_close(a, b.grad, rtol=1e-3, atol=1e-5)
    norms = [m for m in oracle if isinstance(m, nn.BatchNorm1d)]
    for hidden, norm in zip(backend.hidden, norms, strict=True):
        torch.testing.assert_close(hidden.mean, norm.running_mean)
        torch.testing.assert_close(hidden.var, norm.running_var)
    torch.testing.assert_close(backend.eval()(torch.tensor(ids), counts), oracle.eval()(x))


def test_statistics_are_of_all_processes_rows() -> None:
    """Two processes, one after the other: what each would get from the sums of both."""
    torch.manual_seed(0)
    whole = DHEBackend(SPEC, DHEConfig(layers=1, hashes=12, hidden=9))
    parts = [copy.deepcopy(whole) for _ in range(2)]
    mine = [([3, 4, 3], [2, 1]), ([3, 8, 9, 5], [3, 1])]
    expected = whole(torch.tensor([3, 4, 3, 8, 9, 3, 5]), [5, 2])
    sums: list[torch.Tensor] = []
    for part, (ids, counts) in zip(parts, mine):
        part.total = lambda s: sums.append(s) or s
        part(torch.tensor(ids), counts)
    for part, (ids, counts), places in zip(parts, mine, ([0, 1, 5], [2, 3, 4, 6])):
        part.total = lambda s: sum(sums)
        for state, start in zip((part.hidden[0].mean, part.hidden[0].var), (0.0, 1.0)):
            state.fill_(start)
        torch.testing.assert_close(part(torch.tensor(ids), counts), expected[places])
        torch.testing.assert_close(part.hidden[0].var, whole.hidden[0].var)


def test_a_batch_of_one_id_or_none_uses_the_running_statistics() -> None:
    backend = DHEBackend(SPEC, DHEConfig(layers=2, hashes=8, hidden=8))
    single = backend(torch.tensor([5]), [1, 0])
    assert backend(torch.tensor([], dtype=torch.int64), [0, 0]).shape == (0, 6)
    assert [h.mean.abs().sum() for h in backend.hidden] == [0, 0]
    torch.testing.assert_close(backend.eval()(torch.tensor([5]), [1, 0]), single)


def test_an_encoding_is_uniform_and_its_hashes_are_independent() -> None:
    x = encoded(mix(torch.arange(20_000)), seeds(30))
    assert x.min() >= -1
    assert x.max() < 1
    histogram = torch.histc(x, 10, -1, 1) / x.numel()
    assert (histogram - 0.1).abs().max() < 0.002
    correlation = torch.corrcoef(x.T) - torch.eye(30)
    assert correlation.abs().max() < 5 / 20_000**0.5


@pytest.mark.parametrize("layers", [1, 5])
def test_vectors_start_at_the_scale_of_a_full_table(layers: int) -> None:
    torch.manual_seed(0)
    backend = DHEBackend(SPEC, DHEConfig(layers=layers, hashes=64, hidden=256)).eval()
    assert float(next(backend.rows(0)).square().mean().sqrt()) == pytest.approx(0.3, rel=0.15)


def test_width_and_hashes_follow_the_budget() -> None:
    spec = GroupSpec((TableSpec("a", 10**6),), 16)
    # k h of the first layer and 4 h^2 of the others, 4 h for each normalisation, 16 h + 16 of the last
    _, config = plan_backend("dhe", spec, 4 * (100 * 100 + 4 * 100 * 100 + 5 * 4 * 100 + 101 * 16))
    assert (config.hashes, config.hidden) == (100, 100)
    _, config = plan_backend("dhe", spec, 4 * (5 * 2000 * 2000))
    assert config.hashes == 1024
    assert config.hidden > 2000
    least = min_bytes("dhe", spec)
    assert least == 4 * (1 + 4 + 5 * 4 + 2 * 16)
    assert plan_backend("dhe", spec, least)[1].hidden == 1
    assert min_bytes("dhe", spec, options={"hidden": 10}) == 4 * (10 * (1 + 4 * 10 + 5 * 4) + 11 * 16)
