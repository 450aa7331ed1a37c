"""Multi-granular quantised embeddings: frequent ids have more codes than rare ones."""

from __future__ import annotations

import math

from pydantic import Field

from recsys_emb.embeddings.backends._coded import QuantisedConfig
from recsys_emb.embeddings.backends._quantised import QuantisedBackend
from recsys_emb.embeddings.base import GroupSpec, Stats, falls_with_id, register
from recsys_emb.errors import SettingError


class MGQEConfig(QuantisedConfig):
    """Options of ``mgqe``; ``levels`` are those of a frequent id."""

    frequent: float = Field(0.1, gt=0, le=1, description="share of a table's ids, the first ones, that are frequent")
    rare: float = Field(
        0.5, gt=0, le=1, description="codes of a rare id as a share of a frequent one's; lower: fewer bytes"
    )


@register("mgqe")
class MGQEBackend(QuantisedBackend[MGQEConfig]):
    """Multi-granular quantised embeddings (Kang et al., "Learning Multi-granular Quantized Embeddings for Large-Vocab
    Categorical Features in Recommender Systems", WWW 2020 companion).

    As ``dpq`` with variant vq and residual codes, of which a rare id has only the first. The codebooks of rare ids are
    so trained on all ids, and those behind them code what these leave of frequent ids. (In the paper's main form
    frequent ids have more cells, not more codes.) An id's group is by its number, as encoders number ids by falling
    count, so that nothing is stored for it: N_f of N ids with L codes and the rest with L' take
    (N L' + N_f (L - L')) b / 8 + 2 L K D bytes. A small table that takes no more so keeps its rows in float16. Without
    a budget: a twentieth of the full tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "mgqe", budget=0.1).serving_bytes()
        61730
    """

    summary = "codes trained with the model, more for frequent ids than for rare ones"
    Config = MGQEConfig

    @classmethod
    def covered(cls, ids: int, levels: int, config: MGQEConfig) -> tuple[int, ...]:
        rare = max(1, round(config.rare * levels))
        return (ids,) * rare + (math.ceil(config.frequent * ids),) * (levels - rare)

    @classmethod
    def plan(
        cls, spec: GroupSpec, config: MGQEConfig, budget: int | None = None, stats: Stats | None = None
    ) -> MGQEConfig:
        for name, counts in (stats or {}).items():
            if not falls_with_id(counts):
                raise SettingError("backend", f"mgqe needs counts that fall with the id; {name!r} has others; use dpq")
        return super().plan(spec, config, budget, stats)
