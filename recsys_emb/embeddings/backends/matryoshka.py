"""Nested widths from one training: any table can be cut to any width afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import nn

from recsys_emb.embeddings.backends.field_dim import FieldDimBackend, FieldDimConfig
from recsys_emb.embeddings.base import Candidates, FieldReport, GroupSpec, StorageItem, register
from recsys_emb.embeddings.nested import NestedPart
from recsys_emb.errors import SettingError


class MatryoshkaConfig(FieldDimConfig):
    """Options of ``matryoshka``; ``widths`` are those that are served."""

    choices: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="widths that are trained; absent: 1, 2, 4, ... and D"
    )
    losses: Literal["drawn", "sum"] = Field(
        "drawn",
        description="drawn: each looked-up id keeps a random one of the widths; sum: every batch goes through all"
        " widths and their losses are added up, which takes as many times as long",
    )


@register("matryoshka")
class MatryoshkaBackend(FieldDimBackend):
    """Nested vectors (Kusupati et al., "Matryoshka Representation Learning", 2022), a random width at a time.

    The first w columns of a vector are a good vector of w columns, for every w of ``choices``. The paper adds up the
    losses of all widths, as Starbucks does over a fixed list (Zhuang et al., "Starbucks: Improved Training for 2D
    Matryoshka Embeddings", 2024, section 3.1): ``losses: sum``, whose mean is taken, so that L2 weighs what it does
    elsewhere. By default each looked-up id keeps a random width (Rippel et al., "Learning Ordered Representations with
    Nested Dropout", 2014), which costs one pass and lets widths differ between fields. Training holds full tables; what
    is served is ``field_dim`` at the widths that are given or fit the budget.

    Example:
        >>> table = EmbeddingBagConfig(name="item", embedding_dim=16, num_embeddings=10_000, feature_names=["item"])
        >>> make_embedding_bag_collection([table], "matryoshka", budget=0.1).serving_bytes()
        40000
    """

    summary = "one training for all widths, then each table is cut to one"

    Config = MatryoshkaConfig
    grows = False

    def _build(self, device: torch.device | str | None) -> nn.ModuleDict:
        config = cast(MatryoshkaConfig, self.config)
        assert config.choices is not None
        assert config.widths is not None
        part = NestedPart(self.spec, config.choices, device)
        part.use([config.widths[t.name] for t in self.spec.tables])
        return nn.ModuleDict({"nested": part})

    @classmethod
    def checked(cls, spec: GroupSpec, config: FieldDimConfig) -> FieldDimConfig:
        most = spec.vector_dim
        choices = cast(MatryoshkaConfig, config).choices or powers_of_two(most)
        if max(choices) > most:
            raise SettingError("options.choices", f"{max(choices)} is too wide; allowed: 0 to {most}")
        return super().checked(spec, config.model_copy(update={"choices": choices}))

    def storage(self) -> list[StorageItem]:
        return self._served("meta").storage()

    def describe(self) -> list[FieldReport]:
        return self._served("meta").describe()

    def forms(self) -> Iterator[None]:
        config = cast(MatryoshkaConfig, self.config)
        if config.losses == "drawn":
            yield
            return
        assert config.choices is not None
        for width in config.choices:
            self._nested.fixed = width
            yield
        self._nested.fixed = None

    def candidates(self) -> Candidates:
        return self._nested

    @torch.no_grad()
    def compact(self) -> FieldDimBackend:
        part, device = self._nested, self._nested.table.weight.device
        served = self._served(device)
        for table, ids in enumerate(torch.arange(sum(part.sizes), device=device).split(part.sizes)):
            served.load_rows(table, part.table(ids))
        return served

    @property
    def _nested(self) -> NestedPart:
        return cast(NestedPart, self.parts["nested"])

    def _served(self, device: torch.device | str) -> FieldDimBackend:
        return FieldDimBackend(self.spec, FieldDimConfig(widths=self.config.widths), device)


def powers_of_two(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and ``most``."""
    return (*(1 << k for k in range((most - 1).bit_length())), most)
