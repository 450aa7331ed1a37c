"""OptEmbed: thresholds decide which ids keep a row, a search decides each field's width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from recsys_emb.embeddings.backends._row_thresholds import RowCandidates, Supernet
from recsys_emb.embeddings.backends.kept_rows import KeptRowsBackend
from recsys_emb.embeddings.base import (
    BackendConfig,
    EmbeddingBackend,
    FieldReport,
    GroupSpec,
    ParamGroup,
    Stats,
    StorageItem,
    register,
)
from recsys_emb.embeddings.composed import ComposedBackend, SizedConfig
from recsys_emb.embeddings.evolution import Evolution, Widths
from recsys_emb.embeddings.stages import InitFrom, Search, Stage, Train
from recsys_emb.errors import SettingError


class OptEmbedConfig(SizedConfig):
    """Options of ``optembed``."""

    alpha: float = Field(
        1e-4, ge=0, description="weight of sum exp(-threshold) in the loss; higher: fewer rows; the paper: 1e-6 to 1e-4"
    )
    threshold_lr: float = Field(0.1, gt=0, description="learning rate of thresholds, as a factor on the model's")
    retrain_from: Literal["initial", "best"] = Field(
        "initial",
        description="weights that the found form is trained from: those that the supernet started with, or its best, "
        "which takes fewer steps and overfits sooner",
    )
    generations: int = Field(5, ge=0, description="of the search for widths; the paper: 30")
    parents: int = Field(10, ge=1, description="candidates that a generation comes from; the paper: 15")
    mutations: int = Field(10, ge=0, description="new candidates a generation, by mutation")
    crossovers: int = Field(10, ge=0, description="new candidates a generation, by crossover")
    mutation_rate: float = Field(0.1, gt=0, le=1, description="share of fields that a mutation changes")
    search_rows: int | None = Field(
        20_000, ge=1, description="validation rows that a candidate is scored on; null: all, slower and less noisy"
    )
    bytes: int | None = Field(None, ge=1, description="what the serving form may take; absent: by the budget")

    @property
    def sized(self) -> bool:
        return self.bytes is not None


@register("optembed")
class OptEmbedBackend(ComposedBackend[OptEmbedConfig]):
    """OptEmbed (Lyu et al., "OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction", 2022).

    1. The supernet is a full table and a threshold t_f per table. A row counts while ||row||_1 > t_f, a first-order
       column aside, with a straight-through step; the loss gains alpha * sum exp(-t_f). In training each looked-up id
       keeps a random number of columns, uniform over 1..D, so one table holds every width (sections 3.2, 3.3; the
       authors' code draws per sample and field, too).
    2. An evolutionary search looks for each table's width by evaluation on validation rows (section 3.3). A candidate
       keeps the rows above their threshold; where that exceeds the budget at its widths, those with the largest
       ||row||_1 - t_f over all tables, as many as fit: wide candidates keep few rows, narrow ones many.
    3. What was found is trained: the surviving rows at their table's width (:class:`KeptRowsBackend`, whose bytes are
       those that are served). A first-order column is kept at every width and goes with its row.

    Thresholds are trained with Adam. The authors use plain SGD and an alpha of 1e-4 at the most, which hardly moves
    them in a short training: on MovieLens-1M by 0.02, where no row of a large table falls below either way and the
    budget alone decides. (DeepFM of ``experiments/``, ``embedding.budget=0.1 training.lr_schedule=linear
    training.epochs=8``, seed 1, validation AUC: Adam 0.8818; SGD at a rate of 0.01 0.8794, with alpha 0.01, so that
    rows fall, 0.8817.)

    This class is the supernet; its ``serving_bytes`` are the upper bound of what the search may find: the budget, or
    the full tables.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "optembed", budget=0.1).serving_bytes()
        64000
    """

    summary = "learned thresholds drop rows, a search finds each field's width"

    Config = OptEmbedConfig
    default_ratio = 1.0

    def __init__(self, spec: GroupSpec, config: OptEmbedConfig, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        self.parts = nn.ModuleDict({"supernet": Supernet(spec, device)})

    @property
    def supernet(self) -> Supernet:
        return cast(Supernet, self.parts["supernet"])

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def checked(cls, spec: GroupSpec, config: OptEmbedConfig) -> OptEmbedConfig:
        least, most = _least_bytes(spec), spec.full_bytes
        if config.bytes is not None and not least <= config.bytes <= most:
            raise SettingError("options.bytes", f"{config.bytes:,} bytes; allowed: {least:,} to {most:,}")
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: OptEmbedConfig, stats: Stats | None) -> OptEmbedConfig:
        return config.model_copy(update={"bytes": _least_bytes(spec)})

    @classmethod
    def size(cls, spec: GroupSpec, config: OptEmbedConfig, budget: int, stats: Stats | None) -> OptEmbedConfig:
        return config.model_copy(update={"bytes": min(budget, spec.full_bytes)})

    def storage(self) -> list[StorageItem]:
        assert self.config.bytes is not None
        return [StorageItem("planned", (self.config.bytes,), torch.uint8)]

    def describe(self) -> list[FieldReport]:
        return EmbeddingBackend.describe(self)

    # -- training -----------------------------------------------------------------------------------------------------

    @classmethod
    def stages(cls, config: BackendConfig) -> Sequence[Stage]:
        assert isinstance(config, OptEmbedConfig)
        return (
            Train("supernet"),
            Search(rows=config.search_rows),
            Train("retrain", InitFrom(checkpoint=config.retrain_from)),
        )

    def param_groups(self) -> list[ParamGroup]:
        return [
            ParamGroup("weight", [self.supernet.table.weight]),
            ParamGroup("threshold", [self.supernet.thresholds], self.config.threshold_lr),
        ]

    def aux_loss(self) -> Tensor:
        return self.config.alpha * torch.exp(-self.supernet.thresholds).sum()

    # -- from the supernet to the rows that stay ----------------------------------------------------------------------

    @torch.no_grad()
    def search(self, score: Callable[[], float], seed: int) -> KeptRowsBackend:
        config, candidates = self.config, self.candidates()

        def fitness(widths: Widths) -> float:
            candidates.use(widths)
            return score()

        evolution = Evolution(
            config.generations, config.parents, config.mutations, config.crossovers, config.mutation_rate
        )
        candidates.use(evolution.best(fitness, len(self.spec.tables), self.spec.vector_dim, seed))
        return self._kept(candidates)

    def candidates(self) -> RowCandidates:
        assert self.config.bytes is not None
        return RowCandidates(self.spec, self.supernet, self.config.bytes)

    def compact(self) -> KeptRowsBackend:
        """The supernet's present widths, and the rows that fit the budget at these; of one that was not searched."""
        net, candidates = self.supernet, self.candidates()
        before = net.cut
        candidates.use(net.widths.tolist())
        kept = self._kept(candidates)
        net.cut = before
        return kept

    def _kept(self, candidates: RowCandidates) -> KeptRowsBackend:
        """The rows that the present candidate keeps."""
        masks = [margin > self.supernet.cut for margin in candidates.margins]
        return KeptRowsBackend.chosen(self.spec, self.supernet, masks)


def _least_bytes(spec: GroupSpec) -> int:
    """One row a table, at one column beside a first-order one, and its entry in a list of ids."""
    entry = 4 if spec.num_embeddings <= 1 << 31 else 8
    return min(len(spec.tables) * (4 * spec.columns(1) + entry), spec.full_bytes)
