"""Deep hash embedding: a network computes every vector from hashes of the id."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.base import EmbeddingBackend, FieldReport, GroupSpec, Stats, register
from recsys_emb.embeddings.composed import ComposedBackend, SizedConfig
from recsys_emb.embeddings.distinct import Keys, distinct
from recsys_emb.embeddings.hashing import hash_ids, seeds
from recsys_emb.embeddings.tables import fill_uniform

PAPERS_HASHES = 1024
VALUES = 1 << 24  # of a hash: floats of as many equal steps from -1 to 1 are exact
MISH_SQUARED = 0.4523
"""The mean of mish(x)^2 for a standard normal x."""


class DHEConfig(SizedConfig):
    """Options of ``dhe``."""

    layers: int = Field(5, ge=1, le=16, description="hidden layers; more: deeper, so narrower in the same bytes")
    seed: int = Field(0, description="of the hash functions; no effect on size")
    hashes: int | None = Field(
        None,
        ge=1,
        le=1 << 16,
        description="k, hash values that encode an id, 4 k hidden bytes; absent: as many as a hidden layer has units, "
        f"then what the budget leaves, {PAPERS_HASHES} at most",
    )
    hidden: int | None = Field(
        None,
        ge=1,
        le=1 << 16,
        description="units of each hidden layer, about 4 layers hidden^2 bytes; more: closer to a free table, slower; "
        "absent: by the budget",
    )

    @property
    def sized(self) -> bool:
        return self.hidden is not None and self.hashes is not None


@register("dhe")
class DHEBackend(ComposedBackend[DHEConfig]):
    """Deep hash embedding (Kang et al., "Learning to Embed Categorical Features without Embedding Tables for
    Recommendation", KDD 2021, sections 4 and 5).

    An id is encoded by k hash functions, each uniform over [-1, 1); a network of hidden layers, with batch
    normalisation and Mish, decodes that into its vector. There is no table: the bytes are those of the network, one for
    all tables, each with its own hash functions. Each different id of a batch is computed once, and statistics count
    it as often as it comes. A vector costs as many operations as the network has weights. Without a budget: a tenth
    of the full tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "dhe", budget=0.1).serving_bytes()
        63876
    """

    summary = "a network computes vectors from hashes of the id, without a table"

    Config = DHEConfig
    needs_id_list = False
    grows = True

    def __init__(self, spec: GroupSpec, config: DHEConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.hashes is not None
        assert config.hidden is not None
        tables = len(spec.tables)
        self.keys = Keys(tables, config.seed)
        self.hash_seeds = seeds(config.hashes, config.seed + 1)
        std = (sum(t.init_std**2 for t in spec.tables) / tables) ** 0.5  # one network, so one scale
        inside = (config.hidden * MISH_SQUARED) ** -0.5  # keeps variance 1 from layer to layer
        widths = [config.hashes] + [config.hidden] * config.layers
        stds = [(3 / config.hashes) ** 0.5] + [inside] * (config.layers - 1)
        self.hidden = nn.ModuleList(Hidden(a, b, s, device) for a, b, s in zip(widths, widths[1:], stds))
        self.out = Out(config.hidden, spec.embedding_dim, std * inside, device)

    def lookup(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        keys = self.keys(ids, counts)
        places, numbers = distinct(keys)
        x = encoded(keys.index_select(0, places), self.hash_seeds)
        times = _times(numbers, places) if self.training else None
        for layer in self.hidden:
            x = layer(x, times, self.total)
        return self.out(x).index_select(0, numbers)

    def describe(self) -> list[FieldReport]:
        return EmbeddingBackend.describe(self)

    @classmethod
    def smallest(cls, spec: GroupSpec, config: DHEConfig, stats: Stats | None) -> DHEConfig:
        return config.model_copy(update={"hashes": config.hashes or 1, "hidden": config.hidden or 1})

    @classmethod
    def size(cls, spec: GroupSpec, config: DHEConfig, budget: int, stats: Stats | None) -> DHEConfig:
        def floats(hashes: int, hidden: int) -> int:
            first, others = hidden * (hashes + 4), (config.layers - 1) * hidden * (hidden + 4)
            return first + others + (hidden + 1) * spec.embedding_dim

        def hashes(hidden: int) -> int:
            return config.hashes or min(hidden, PAPERS_HASHES)

        low, high = 1, 1 << 16
        while config.hidden is None and high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if floats(hashes(middle), middle) <= budget // 4 else (low, middle)
        hidden = config.hidden or low
        left = budget // 4 - floats(0, hidden)
        k = config.hashes or max(1, min(left // hidden, PAPERS_HASHES))
        return config.model_copy(update={"hashes": k, "hidden": hidden})


class Hidden(nn.Module):
    """Linear, batch normalisation over all ids, Mish: [m, inputs] -> float32 [m, units].

    Args:
        inputs, units: of the linear layer; the normalisation makes up for a bias.
        std: of the weights at the start.
        device: where the weights are made.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, inputs: int, units: int, std: float, device: torch.device | str | None) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(units, inputs, device=device))
        self.scale = nn.Parameter(torch.empty(units, device=device))
        self.shift = nn.Parameter(torch.empty(units, device=device))
        self.register_buffer("mean", torch.empty(units, device=device))
        self.register_buffer("var", torch.empty(units, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        fill_uniform(self.weight, self.std)
        with torch.no_grad():
            for values, start in ((self.scale, 1.0), (self.shift, 0.0), (self.mean, 0.0), (self.var, 1.0)):
                values.fill_(start)

    def forward(self, x: Tensor, times: Tensor | None, total: Callable[[Tensor], Tensor]) -> Tensor:
        """``times`` float [m]: how often each row counts, None outside training; ``total`` sums over processes."""
        x = F.linear(x, self.weight).float()
        if times is not None:
            x = _normalised(x, total(_sums(x, times)), self.mean, self.var)
        else:
            x = (x - self.mean) * torch.rsqrt(self.var + 1e-5)
        return F.mish(x * self.scale + self.shift)


class Out(nn.Module):
    """The last layer, [m, inputs] -> float32 [m, units]."""

    def __init__(self, inputs: int, units: int, std: float, device: torch.device | str | None) -> None:
        super().__init__()
        self.std = std
        self.weight = nn.Parameter(torch.empty(units, inputs, device=device))
        self.bias = nn.Parameter(torch.empty(units, device=device))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        fill_uniform(self.weight, self.std)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias).float()


def encoded(keys: Tensor, seeds: Tensor) -> Tensor:
    """keys int64 [m], seeds int64 [k] -> k hashes of each, float [m, k] in [-1, 1)."""
    return hash_ids(keys[:, None], VALUES, seeds.to(keys.device)).float() / (VALUES // 2) - 1


@torch.fx.wrap
def _times(numbers: Tensor, places: Tensor) -> Tensor:
    """How often each of m numbers occurs, float [m]."""
    none = torch.zeros(places.shape[0], device=numbers.device)
    return none.index_add(0, numbers, torch.ones(numbers.shape[0], device=numbers.device))


@torch.fx.wrap
def _sums(x: Tensor, times: Tensor) -> Tensor:
    """Rows, their sum and their sum of squares, float [3, units]; row i of x counts ``times[i]`` times."""
    weighted = x * times[:, None]
    return torch.stack([times.sum().expand(x.shape[1]), weighted.sum(0), (weighted * x).sum(0)])


@torch.fx.wrap
def _normalised(x: Tensor, sums: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """By the batch's mean and variance, which the running ones follow; by these where it has fewer than two rows."""
    rows = sums[0]
    batch_mean = sums[1] / rows.clamp(min=1)
    batch_var = (sums[2] / rows.clamp(min=1) - batch_mean.square()).clamp(min=0)
    enough = rows > 1
    batch_mean, batch_var = torch.where(enough, batch_mean, mean), torch.where(enough, batch_var, var)
    out = (x - batch_mean) * torch.rsqrt(batch_var + 1e-5)
    with torch.no_grad():
        mean.lerp_(batch_mean.detach(), 0.1)
        unbiased = batch_var.detach() * torch.where(enough, rows / (rows - 1).clamp(min=1), 1)
        var.lerp_(unbiased, 0.1)
    return out
