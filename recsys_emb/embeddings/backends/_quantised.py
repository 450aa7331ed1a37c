"""Rows that become codes while they are trained: what ``dpq`` and ``mgqe`` have in common.

N ids, D columns, L levels of a code each, K = 2^b cells, T tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from recsys_emb.embeddings.backends._coded import MOST_BITS, CodedPart, HalfPart, QuantisedConfig, layout_of
from recsys_emb.embeddings.base import FieldReport, GroupSpec, Stats, StorageItem
from recsys_emb.embeddings.composed import (
    ComposedBackend,
    Part,
    check_length,
    size_error,
)
from recsys_emb.embeddings.posttraining._levels import TableForm
from recsys_emb.embeddings.posttraining.base import saturated
from recsys_emb.embeddings.posttraining.pq import PQ, PQConfig
from recsys_emb.errors import SettingError

Q = TypeVar("Q", bound=QuantisedConfig)


class QuantisedBackend(ComposedBackend[Q]):
    """Trains a row for every id, which a lookup replaces by the sum of a cell of each of its codebooks. What is served
    are packed codes and codebooks in float16 (:class:`PQ`), which is what evaluation sees. A table that takes no more
    so is kept in float16."""

    default_ratio = 0.05

    def __init__(self, spec: GroupSpec, config: Q, device: torch.device | str | None = None) -> None:
        super().__init__(spec, config, device)
        assert config.tables is not None
        plain = [t for t, form in enumerate(config.tables) if not form.width]
        coded = [t for t, form in enumerate(config.tables) if form.width]
        self.parts = nn.ModuleDict()
        if plain:
            self.parts["plain"] = HalfPart(plain, spec, device)
        if coded:
            self.parts["coded"] = CodedPart(coded, spec, config, device)

    # -- sizing -------------------------------------------------------------------------------------------------------

    @classmethod
    def covered(cls, ids: int, levels: int, config: Q) -> tuple[int, ...]:
        """How many ids of a table each level has a code for, falling; the first has one for all."""
        return (ids,) * levels

    @classmethod
    def checked(cls, spec: GroupSpec, config: Q) -> Q:
        most = layout_of(spec, config).most_levels()
        if config.levels is not None and config.levels > most:
            raise SettingError("options.levels", f"{config.levels} is too many; allowed: 1 to {most}")
        if config.tables is None:
            return config
        check_length("tables", spec, config.tables)
        shapes = {form.bits for form in config.tables if form.width}
        for table, form in zip(spec.tables, config.tables):
            levels = len(form.bits)
            ids = cls.covered(table.num_embeddings, levels, config) if form.width else (table.num_embeddings,)
            alike = len(shapes) <= 1 and len(set(form.bits)) <= 1 and levels <= most
            if form.width not in (0, spec.embedding_dim) or form.ids != ids or not alike:
                allowed = f"width 0 or {spec.embedding_dim}, ids {list(ids)}, the same bits everywhere"
                raise size_error("tables", table, form.model_dump(), allowed)
        return config

    @classmethod
    def smallest(cls, spec: GroupSpec, config: Q, stats: Stats | None) -> Q:
        layout = layout_of(spec, config)
        choices = [cls._forms(spec, config, levels, bits) for levels, bits in _shapes(spec, config)]
        return config.model_copy(update={"tables": min(choices, key=lambda forms: sum(map(layout.nbytes, forms)))})

    @classmethod
    def size(cls, spec: GroupSpec, config: Q, budget: int, stats: Stats | None) -> Q:
        layout = layout_of(spec, config)

        def size(forms: Sequence[TableForm]) -> int:
            return sum(map(layout.nbytes, forms))

        def worth(forms: tuple[TableForm, ...]) -> int:
            """Bytes that tell ids apart."""
            return sum(layout.code_bytes(form) if form.width else layout.nbytes(form) for form in forms)

        choices = [cls._forms(spec, config, levels, bits) for levels, bits in _shapes(spec, config)]
        best = max((forms for forms in choices if size(forms) <= budget), key=worth)
        forms = list(best)
        left = budget - size(forms) if config.levels is config.bits is None else 0
        for t in sorted(range(len(forms)), key=lambda t: spec.tables[t].num_embeddings):
            plain = TableForm(width=0, ids=(spec.tables[t].num_embeddings,))
            if (cost := layout.nbytes(plain) - layout.nbytes(forms[t])) <= left:
                forms[t], left = plain, left - cost
        return config.model_copy(update={"tables": tuple(forms)})

    @classmethod
    def _forms(cls, spec: GroupSpec, config: Q, levels: int, bits: int) -> tuple[TableForm, ...]:
        """Each table in codes, or as it is where that takes no more."""
        layout, forms = layout_of(spec, config), []
        for ids in (t.num_embeddings for t in spec.tables):
            covered = cls.covered(ids, levels, config)
            coded = TableForm(width=spec.embedding_dim, bits=(bits,) * levels, ids=covered)
            forms.append(min(TableForm(width=0, ids=(ids,)), coded, key=layout.nbytes))
        return tuple(forms)

    def storage(self) -> list[StorageItem]:
        return self._served("meta").storage()

    def describe(self) -> list[FieldReport]:
        return self._served("meta").describe()

    # -- training -----------------------------------------------------------------------------------------------------

    def aux_loss(self) -> Tensor | None:
        return None if self.config.by_product or self.coded is None else self.coded.distance()

    def after_step(self, step: int) -> None:
        if self.coded is not None:
            self.coded.after_step(step, self.total)

    @property
    def coded(self) -> CodedPart | None:
        """The tables that are stored as codes."""
        return cast(CodedPart, self.parts["coded"]) if "coded" in self.parts else None

    # -- what is served -----------------------------------------------------------------------------------------------

    def _served(self, device: torch.device | str) -> PQ:
        product, turned = self.config.layout
        codes: Literal["product", "residual"] = "product" if product else "residual"
        return PQ(self.spec, PQConfig(codes=codes, rotation=turned, tables=self.config.tables), device)

    @torch.no_grad()
    def compact(self) -> PQ:
        served, was_training = self._served("meta"), self.training
        self.eval()
        codes, floats = self.coded.stored() if self.coded is not None else ([], [])
        kept = [saturated(torch.cat(list(self.rows(t))), torch.float16) for t in self._plain_tables()]
        self.train(was_training)
        empty = {name: torch.empty(0, dtype=t.dtype, device=self.device) for name, t in served.state_dict().items()}
        arrays = {
            "codes": torch.cat([empty["codes"], *codes]),
            "books": torch.cat([empty["books"], *floats]),
            "kept": torch.cat([empty["kept"].view(0, self.spec.embedding_dim), *kept]),
        }
        return PQ.filled(self.spec, served.config, arrays).eval()

    def _plain_tables(self) -> list[int]:
        return cast(Part, self.parts["plain"]).tables if "plain" in self.parts else []


def _shapes(spec: GroupSpec, config: QuantisedConfig) -> list[tuple[int, int]]:
    """Levels and bits that a budget chooses from, most bits first."""
    most = layout_of(spec, config).most_levels()
    levels = range(1, most + 1) if config.levels is None else (config.levels,)
    bits = range(MOST_BITS, 0, -1) if config.bits is None else (config.bits,)
    return [(n, b) for b in bits for n in levels]
