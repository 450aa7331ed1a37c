"""What a table's codes can look like, what each look costs, and which tables get how many.

A table's form is a list of *levels*. Level l gives each of the first n_l ids one code of b_l bits, n_1 >= n_2 >= ...:
an encoder numbers ids by falling count, so a frequent id has more levels than a rare one. An id from n_1 on has the
codes of id 0. D columns, width r: columns of the space that codebooks are in.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from recsys_emb.embeddings.posttraining._packing import packed_bytes

MOST_LEVELS = 12
"""More are slower to look up, and gain little over more bits."""
WIDTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96, 128)
"""Columns of a codebook, beside all."""
PRICES = 0.7 ** np.arange(50)
"""Prices of a byte, as shares of the error that one row for the whole table makes a byte."""

Curve = np.ndarray
"""float64 [C, ...]: a weighted squared error at each of C cuts, the ids from 0 on that have a code of some level."""


class TableForm(BaseModel):
    """How one table is stored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(ge=0, description="columns of a codebook row; 0: no codes, the rows of the first ids kept")
    bits: tuple[int, ...] = Field((), description="of a code of each level")
    ids: tuple[int, ...] = Field(description="how many ids each level covers; others are stored as id 0 is")

    @model_validator(mode="after")
    def _consistent(self) -> TableForm:
        levels = len(self.bits) if self.width else 1
        falling = all(a >= b for a, b in pairwise(self.ids))
        if len(self.ids) != levels or not levels or not falling or min(self.ids) < 1:
            raise ValueError("ids: one number per level, falling, at least 1")
        if any(not 1 <= b <= 8 for b in self.bits) or (self.bits and not self.width):
            raise ValueError("bits: 1 to 8 for each level")
        return self


class Layout(NamedTuple):
    """What is the same for all tables: D; whether levels share out the columns, and whether these are turned first.

    Where codebooks have fewer columns than D, or are turned, a table stores a mean [D] and a basis [width, D] beside.
    """

    dim: int
    product: bool
    turned: bool

    def has_basis(self, form: TableForm) -> bool:
        return form.width > 0 and (form.width < self.dim or (self.product and self.turned))

    def columns(self, form: TableForm) -> list[tuple[int, int]]:
        """First column and end of each level's codebook, of ``form.width``."""
        levels, width = len(form.bits), form.width
        if not self.product:
            return [(0, width)] * levels
        return [(i * width // levels, (i + 1) * width // levels) for i in range(levels)]

    def widths(self) -> list[int]:
        """Columns that codebooks may have: all of a product's, else some of the strongest."""
        return [self.dim] if self.product else [*(w for w in WIDTHS if w < self.dim), self.dim]

    def most_levels(self) -> int:
        """Codes that an id may have; a product has a column for each at least."""
        return min(MOST_LEVELS, self.dim) if self.product else MOST_LEVELS

    def code_bytes(self, form: TableForm) -> int:
        return sum(packed_bytes(n, b) for n, b in zip(form.ids, form.bits))

    def floats(self, form: TableForm) -> int:
        """fp16 numbers of codebooks and basis, or of rows."""
        if not form.width:
            return form.ids[0] * self.dim
        books = sum((end - start) << b for (start, end), b in zip(self.columns(form), form.bits))
        return books + (form.width + 1) * self.dim * self.has_basis(form)

    def nbytes(self, form: TableForm) -> int:
        return self.code_bytes(form) + 2 * self.floats(form)


class Option(NamedTuple):
    """A form that a table may take, and the weighted squared error of its rows in it."""

    nbytes: int
    error: float
    form: TableForm


def kept_options(layout: Layout, cuts: Sequence[int], merged: Curve) -> list[Option]:
    """The first n rows as they are, in fp16. ``merged`` [C]: the error of all others in one row."""
    forms = [TableForm(width=0, ids=(n,)) for n in cuts]
    return [Option(layout.nbytes(form), float(error), form) for form, error in zip(forms, merged)]


def given_forms(layout: Layout, ids: int, bits: Sequence[int], levels: int) -> list[TableForm]:
    """Forms with so many levels, each of all ``ids``."""
    pairs = product(layout.widths(), bits)
    return [TableForm(width=width, bits=(b,) * levels, ids=(ids,) * levels) for width, b in pairs]


def coded_options(
    layout: Layout, cuts: Sequence[int], bits: int, width: int, merged: Curve, levels: Sequence[Curve]
) -> list[Option]:
    """Forms with up to all of these levels: for each of many prices of a byte the one whose error and bytes cost least.

    Args:
        layout: of all tables.
        cuts: C numbers of ids, rising.
        bits: of a code.
        width: of a codebook row.
        merged: [C], the error of the ids that share the codes of id 0 when so many ids have their own.
        levels: for 1, 2, ... levels [C], the error of the ids below a cut when each has so many.
    """
    prices = merged[0] / (2 * layout.dim) * PRICES
    gains = [merged[0] - merged - levels[0], *(before - after for before, after in pairwise(levels))]
    size = np.array([packed_bytes(n, bits) for n in cuts])
    ends, nets = [np.full(len(prices), len(cuts) - 1)], [np.zeros(len(prices))]
    errors = [np.full(len(prices), merged[0])]
    for gain in gains:  # a level ends where its last ids pay for their bytes, and no later than the one before
        net = gain - prices[:, None] * size
        net[np.arange(len(cuts)) > ends[-1][:, None]] = -np.inf
        ends.append(net.argmax(1))
        nets.append(nets[-1] + net.max(1) - prices * (2 * width << bits))
        errors.append(errors[-1] - gain[ends[-1]])
    best = 1 + np.array(nets[1:]).argmax(0)
    found = {}
    for price, count in enumerate(best.tolist()):
        ids = tuple(cuts[end[price]] for end in ends[1 : count + 1])
        found[ids] = max(float(errors[count][price]), 0.0)
    forms = [TableForm(width=width, bits=(bits,) * len(ids), ids=ids) for ids in found]
    return [Option(layout.nbytes(form), error, form) for form, error in zip(forms, found.values())]


def useful(options: Sequence[Option]) -> list[Option]:
    """Those that no other beats in both bytes and error, by rising bytes."""
    out: list[Option] = []
    for option in sorted(options, key=lambda o: (o.nbytes, o.error)):
        if not out or option.error < out[-1].error:
            out.append(option)
    return out


def spend(tables: Sequence[Sequence[Option]], budget: float, worth: Sequence[float] | None = None) -> list[Option]:
    """One option per table: from the smallest on, the step that lowers the error most per byte among those that fit.

    Args:
        tables: ``useful`` options of each.
        budget: bytes, at least those of every table's first option.
        worth: what an error in each table counts; alike when absent.
    """
    sizes = [np.array([o.nbytes for o in options]) for options in tables]
    errors = [np.array([o.error for o in options]) * w for options, w in zip(tables, worth or [1.0] * len(tables))]
    at, left = [0] * len(tables), budget - sum(size[0] for size in sizes)

    def step(table: int) -> tuple[float, int]:
        now, size, error = at[table], sizes[table], errors[table]
        cost = size[now + 1 :] - size[now]
        slope = np.where(cost <= left, (error[now] - error[now + 1 :]) / cost, -1)
        best = int(slope.argmax()) if len(slope) else 0
        return (float(slope[best]), now + 1 + best) if len(slope) else (-1.0, 0)

    while True:
        steps = [step(table) for table in range(len(tables))]
        table = max(range(len(tables)), key=lambda t: steps[t][0])
        slope, option = steps[table]
        if slope < 0:
            return [options[i] for options, i in zip(tables, at)]
        left -= sizes[table][option] - sizes[table][at[table]]
        at[table] = option
