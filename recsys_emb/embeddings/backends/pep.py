"""PEP: learned soft thresholds decide which values stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.backends._sparse_rows import SparseBackend, SparseConfig
from recsys_emb.embeddings.base import BackendConfig, GroupSpec, ParamGroup, register
from recsys_emb.embeddings.composed import OwnRows
from recsys_emb.embeddings.counts import per_id
from recsys_emb.embeddings.stages import InitFrom, Search, Stage, Train
from recsys_emb.embeddings.tables import EmbeddingTable, RowInit


class PEPConfig(SparseConfig):
    """Options of ``pep``."""

    by: Literal["table", "column", "row", "value"] = Field(
        "column",
        description="what shares a threshold: a table, a column of a table, an id's row, or nothing; row and value: "
        "training holds a float more for each id, or as many again as the tables have",
    )
    start: float = Field(-8.0, description="s at the start, thresholds are sigmoid(s); lower: pruning begins later")
    threshold_lr: float = Field(10.0, gt=0, description="learning rate of s, as a factor on the model's")
    decay: float = Field(
        1e-4, ge=0, description="weight of L2 on s, which draws thresholds up to 0.5; higher: more is pruned"
    )
    retrain_from: Literal["initial", "best"] = Field(
        "initial", description="weights that what is left is trained from: those at the very start, or the best"
    )


@register("pep")
class PEPBackend(SparseBackend[PEPConfig]):
    """PEP (Liu et al., "Learnable Embedding Sizes for Recommender Systems", ICLR 2021).

    1. A lookup gives sign(v) relu(|v| - sigmoid(s)), eq. 5; s is learned with v. L2 on s, the mean over a batch of
       ``decay`` s^2 / 2, raises it where the loss allows (Kusupati et al., "Soft Threshold Weight Reparameterization
       for Learnable Sparsity", 2020, section 3, whose form this is). Where s lies in a table (``by`` row or value) the
       run's ``l2_embedding`` acts on it, too.
    2. The values above their thresholds by most, over all tables, as many as fit the budget, are the mask.
    3. These values are trained again under the mask, from their initial values (section 3.4), and served as sparse
       rows: :class:`KeptValuesBackend`.

    Without a budget the thresholds alone decide, and full tables are served where these take less. Lookups cost what
    the batch has.

    This class is the first step; its ``serving_bytes`` are the most that may be left.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> first = make_embedding_bag_collection([table], "pep", budget=0.1)
        >>> then = first.search(lambda: 0.5)  # once it is trained; nothing is scored
        >>> first.serving_bytes(), then.serving_bytes() <= 64000
        (64000, True)
    """

    summary = "learned soft thresholds prune single values, the rest is trained again"

    Config = PEPConfig

    def __init__(self, spec: GroupSpec, config: PEPConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.thresholds = Thresholds(spec, config, device)
        self._seen: Tensor | None = None

    def sparse(self, rows: Tensor, ids: Tensor, counts: Sequence[int]) -> Tensor:
        s = self.thresholds(ids, counts)
        self._seen = s if self.training and isinstance(s, Tensor) else None  # not while it is traced
        return torch.sign(rows) * torch.relu(rows.abs() - torch.sigmoid(s))

    # -- training -----------------------------------------------------------------------------------------------------

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        assert isinstance(config, PEPConfig)
        return Train("prune"), Search(), Train("retrain", InitFrom(checkpoint=config.retrain_from))

    def param_groups(self) -> list[ParamGroup]:
        return [
            ParamGroup("weight", [self.table.weight]),
            ParamGroup("threshold", list(self.thresholds.parameters()), self.config.threshold_lr),
        ]

    def aux_loss(self) -> Tensor | None:
        flops, s = super().aux_loss(), self._seen
        if s is None or not self.config.decay:
            return flops
        l2 = self.config.decay / 2 * s.square().sum() / max(1, s.numel())
        return l2 if flops is None else l2 + flops


class Thresholds(nn.Module):
    """s of looked-up values: float [n, 1] or [n, D].

    ``shared`` float [T, 1] or [T, D], or a table of [N, 1] or [N, D].
    """

    def __init__(self, spec: GroupSpec, config: PEPConfig, device: torch.device | str | None) -> None:
        super().__init__()
        self.start = config.start
        width = 1 if config.by in ("table", "row") else spec.embedding_dim
        self.table: EmbeddingTable | None = None
        self.shared: nn.Parameter | None = None
        if config.by in ("row", "value"):
            self.rows_of = OwnRows([t.num_embeddings for t in spec.tables])
            init = RowInit(spec.num_embeddings, 0.0, self._fill)
            self.table = EmbeddingTable(spec.num_embeddings, width, [init], device)
        else:
            self.shared = nn.Parameter(torch.empty(len(spec.tables), width, device=device))
            self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.shared is not None:
            nn.init.constant_(self.shared, self.start)

    def _fill(self, weight: Tensor) -> None:
        nn.init.constant_(weight, self.start)

    def forward(self, ids: Tensor, counts: Sequence[int]) -> Tensor:
        """ids int64 [n], table-major, and how many are of each table."""
        if self.table is not None:
            return self.table(self.rows_of(ids, counts))
        assert self.shared is not None
        return per_id(self.shared, counts, ids)
