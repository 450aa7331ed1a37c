"""Random offset block embedding: all vectors are cut from one array of floats."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.base import GroupSpec, Stats, register
from recsys_emb.embeddings.composed import ComposedBackend, Part, SizedConfig
from recsys_emb.embeddings.distinct import Keys, distinct
from recsys_emb.embeddings.hashing import MAX_ROWS, hash_ids, seeds
from recsys_emb.embeddings.tables import block_table
from recsys_emb.errors import SettingError


class RobeConfig(SizedConfig):
    """Options of ``robe``."""

    chunk: int = Field(
        16,
        ge=1,
        le=256,
        description="Z, floats that are cut out together, embedding_dim at most; more: fewer chunks, so faster",
    )
    sign: bool = Field(True, description="a hash flips the sign of half of the chunks; no effect on size")
    seed: int = Field(0, description="of the hash functions; no effect on size")
    floats: int | None = Field(
        None,
        ge=1,
        le=MAX_ROWS,
        description="M, length of the array, a multiple of the chunk; more: fewer collisions; absent: by the budget",
    )

    @property
    def sized(self) -> bool:
        return self.floats is not None


@register("robe")
class RobeBackend(ComposedBackend[RobeConfig]):
    """ROBE (Desai, Chou, Shrivastava, "Random Offset Block Embedding (ROBE) for Compressed Embedding Tables in Deep
    Learning Recommendation Systems", MLSys 2022, section 3: ROBE-Z).

    One array A of M floats for all tables of the group: 4 M bytes. Columns cZ..cZ+Z-1 of an id are
    g_c(id) * A[s..s+Z-1] with s = h_c(id) any place in the array, which wraps round, and g_c = +-1; each table has its
    own hash functions. Without a budget: a tenth of the full tables.

    Each different id of a batch is cut once. The array lies in rows of Z floats, of which a chunk touches two
    neighbours; so gradients are sparse, and a step costs what its chunks cost, not M. An optimizer updates the whole of
    both rows: Adam and SGD move each float as in the flat array, row-wise Adagrad has one scale for Z of them.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "robe", budget=0.1).serving_bytes()
        64000
    """

    summary = "every vector is cut from one array at hashed places"

    Config = RobeConfig
    needs_id_list = False
    grows = True

    def __init__(self, spec: GroupSpec, config: RobeConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.parts = nn.ModuleDict({"shared": Chunks(spec, config, device)})

    @classmethod
    def checked(cls, spec: GroupSpec, config: RobeConfig) -> RobeConfig:
        width = _width(spec, config)
        if config.floats is not None and config.floats % width:
            raise SettingError("options.floats", f"{config.floats}; allowed: multiples of the chunk, {width}")
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: RobeConfig, stats: Stats | None) -> RobeConfig:
        return config.model_copy(update={"floats": _width(spec, config)})

    @classmethod
    def size(cls, spec: GroupSpec, config: RobeConfig, budget: int, stats: Stats | None) -> RobeConfig:
        width, most = _width(spec, config), max(config.chunk, spec.full_bytes // 4)
        return config.model_copy(update={"floats": min(budget // 4, most, MAX_ROWS) // width * width})


class Chunks(Part):
    """C chunks of Z floats make the D columns of a vector; of the last, the columns beyond D are cut off."""

    def __init__(self, spec: GroupSpec, config: RobeConfig, device: torch.device | str | None) -> None:
        assert config.floats is not None
        width, tables = _width(spec, config), len(spec.tables)
        chunks = -(-spec.embedding_dim // width)
        std = (sum(t.init_std**2 for t in spec.tables) / tables) ** 0.5  # one array, so one scale
        table = block_table([config.floats // width], width, [std], device)
        super().__init__(range(tables), Keys(tables, config.seed), table, form="shared")
        self.starts, self.signs = seeds(2 * chunks, config.seed + 1).view(2, chunks)
        self.floats, self.flips, self.dim = config.floats, config.sign, spec.embedding_dim

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        keys = self.transform(ids, counts)
        places, numbers = distinct(keys)
        keys = keys.index_select(0, places)[:, None]  # [m, 1]
        starts = hash_ids(keys, self.floats, self.starts.to(ids.device))  # [m, C]
        width, rows = self.table.weight.shape[1], self.table.num_rows
        row = torch.div(starts, width, rounding_mode="floor")
        pairs = self.table(torch.stack([row, (row + 1) % rows], dim=2))  # [m, C, 2, Z]
        chunks = _cut(pairs, starts - row * width)
        if self.flips:
            signs = 2 * hash_ids(keys, 2, self.signs.to(ids.device)) - 1
            chunks = chunks * signs.to(chunks.dtype)[:, :, None]
        return chunks.flatten(1)[:, : self.dim].index_select(0, numbers)


@torch.fx.wrap
def _cut(pairs: Tensor, offsets: Tensor) -> Tensor:
    """Of neighbouring rows [n, C, 2, Z] the Z floats that begin at offsets [n, C] in the first, [n, C, Z]."""
    columns = torch.arange(pairs.shape[3], device=pairs.device)
    return pairs.flatten(2).gather(2, offsets[:, :, None] + columns)


def _width(spec: GroupSpec, config: RobeConfig) -> int:
    return min(config.chunk, spec.embedding_dim)
