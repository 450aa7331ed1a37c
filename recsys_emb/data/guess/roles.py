"""What every column of a sample is to be read as, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from recsys_emb.data.field_checks import MOST, WEIGHED_ID
from recsys_emb.data.guess import words
from recsys_emb.data.guess.columns import ListFacts, TimeFacts, find_list, find_time, is_id, is_skewed
from recsys_emb.data.guess.label import Label, find_label
from recsys_emb.data.guess.leaks import leak
from recsys_emb.data.guess.sample import Column, Sample, share
from recsys_emb.data.sources._table_options import plain_name
from recsys_emb.data.store import SPLITS
from recsys_emb.errors import UserError

_MANY = 50
"""Values from which on those of two columns are not the same by accident."""


@dataclass
class Proposal:
    """A schema in the making.

    label:  of the rows
    fields: per section the entries with their comments
    user:   column and comment, and the like
    out:    columns that are left out, and why
    """

    label: Label
    fields: dict[str, list[tuple[dict[str, Any], str]]] = field(default_factory=dict)
    user: tuple[str, str] | None = None
    weight: tuple[str, str] | None = None
    split: tuple[dict[str, Any], str] = ({"ratios": [0.8, 0.1, 0.1], "seed": 1}, "at random: no time to split by")
    out: list[tuple[str, str]] = field(default_factory=list)

    def add(self, section: str, column: str, comment: str, **options: Any) -> None:
        """A field that is read from ``column``."""
        taken = {entry["name"] for entries in self.fields.values() for entry, _ in entries}
        name = plain_name(column)
        while name in taken:
            name += "_"
        where = {} if name == column else {"column": column}
        self.fields.setdefault(section, []).append(({"name": name, **where, **options}, comment))

    def name_of(self, column: str) -> str:
        """The field that is read from a column."""
        entries = (entry for entries in self.fields.values() for entry, _ in entries)
        return next(entry["name"] for entry in entries if entry.get("column", entry["name"]) == column)


def propose(sample: Sample) -> Proposal:
    """A proposal for all columns. Raises UserError when there is no label, or no field to embed."""
    proposal = Proposal(find_label(sample.file, sample.columns))
    proposal.out += [(name, f"{kind}, which no field is read from") for name, kind in sample.unreadable.items()]
    columns = _usable(sample.columns, proposal)
    lists = {c.name: found for c in columns if (found := find_list(c)) is not None}
    scalars = [c for c in columns if c.name not in lists]
    times = {c.name: facts for c in scalars if (facts := find_time(c)) is not None}
    _split(proposal, [c for c in scalars if c.name in times], times)
    scalars = [c for c in scalars if c.name not in times]
    targets = {name: _target(name, facts, scalars) for name, facts in lists.items()}
    for column in scalars:
        _place(proposal, column, {t[0] for t in targets.values() if t is not None})
    _place_lists(proposal, lists, targets)
    _choose_user(proposal, scalars)
    if not proposal.fields.get("categorical") and not proposal.fields.get("multi_valued"):
        raise UserError(f"{sample.file}: no column of ids or categories, so there is nothing to embed")
    return proposal


def _usable(columns: Iterable[Column], proposal: Proposal) -> list[Column]:
    """Columns that hold more than one thing and do not give the label away."""
    known = pl.Series(proposal.label.known)
    clicks = proposal.label.clicks[proposal.label.known]
    usable = []
    for column in columns:
        if column.name == proposal.label.column:
            continue
        if column.missing == 1:
            proposal.out.append((column.name, "no values"))
        elif not column.values.dtype.is_nested() and set(column.counts) <= set(SPLITS):
            proposal.split = ({"column": column.name}, f"its values are {', '.join(column.counts)}")
        elif not column.values.dtype.is_nested() and not column.missing and len(column.counts) == 1:
            proposal.out.append((column.name, f"always {next(iter(column.counts))}"))
        elif (area := leak(Column(column.name, column.values.filter(known)), clicks)) is not None:
            proposal.out.append(
                (column.name, f"alone predicts the label, AUC {area:.3f}: is it known before the click?")
            )
        else:
            usable.append(column)
    return usable


def _split(proposal: Proposal, columns: list[Column], times: dict[str, TimeFacts]) -> None:
    """By the time with the most values, all of whose rows have one; times are no fields."""
    whole = [c for c in columns if c.missing < 0.005]
    by = max(whole, key=lambda c: c.texts.n_unique(), default=None)
    if "column" in proposal.split[0]:
        by = None
    for column in columns:
        facts = times[column.name]
        span = f"{facts.how}, {facts.first} to {facts.last}"
        if column is by:
            written = {} if facts.written is None else {"time_format": facts.written}
            comment = f"{span}: the oldest 80% train, the next 10% are valid"
            proposal.split = ({"time": column.name, **written}, comment)
        else:
            proposal.out.append((column.name, f"{span}; an hour or a day can be a field"))


def _target(name: str, facts: ListFacts, scalars: list[Column]) -> tuple[str, float] | None:
    """The column whose values a list holds, and the share of the list's values that it has."""
    values = facts.values.drop_nulls().cast(pl.String)
    best: tuple[float, str, float] = (0.0, "", 0.0)
    for column in scalars:
        if column.numbers is not None and not column.integers:
            continue
        alike = bool(words.stems(name) & words.stems(column.name))
        shared = share(values.is_in(list(column.counts)))
        if shared >= MOST and (alike or len(column.counts) >= _MANY):
            best = max(best, (shared + 0.5 * alike, column.name, shared))
    return (best[1], best[2]) if best[1] else None


def _place(proposal: Proposal, column: Column, targets: set[str]) -> None:
    """A column of one value a row."""
    distinct, present = len(column.counts), len(column.present)
    missing = f", {column.missing:.1%} missing" if column.missing else ""
    values = f"{distinct:,} values{missing}"
    number = column.numbers
    if words.says(column.name, words.WEIGHT) and number is not None and (number >= 0).all() and not column.missing:
        proposal.weight = (column.name, f"sample weights, {_range(number)}")
    elif column.name in targets:
        proposal.add("categorical", column.name, f"{values}, which a list holds too")
    elif number is not None:
        named, why = is_id(column)
        if column.integers and distinct >= 0.999 * present >= 50 and not words.says(column.name, words.NUMBER):
            proposal.out.append((column.name, "a value of its own in every row"))
        elif named:
            proposal.add("categorical", column.name, f"{values}; {why}")
        else:
            skewed = {"transform": "log1p"} if is_skewed(number) else {}
            proposal.add(
                "dense", column.name, f"{why}, {_range(number)}{missing}{', skewed' if skewed else ''}", **skewed
            )
    elif distinct >= 0.999 * present >= 50:
        proposal.out.append((column.name, "a value of its own in every row"))
    elif distinct > 0.5 * present and column.texts.str.len_chars().median() > 40:  # type: ignore[operator]
        proposal.out.append((column.name, "free text"))
    elif share(column.texts.str.contains(r"^-?[0-9]+,[0-9]+$")) > 0.9:
        proposal.out.append((column.name, "numbers with a decimal comma; written with a point they could be dense"))
    else:
        proposal.add("categorical", column.name, values)


def _range(numbers: pl.Series) -> str:
    low, high = np.nanquantile(numbers.to_numpy(), [0, 1]).tolist()
    return f"{low:g} to {high:g}"


def _place_lists(proposal: Proposal, lists: dict[str, ListFacts], targets: dict[str, tuple[str, float] | None]) -> None:
    placed: dict[str, np.ndarray] = {}
    for name, facts in lists.items():
        separator = {} if facts.separator is None else {"separator": facts.separator}
        how = f"{facts.how}, {facts.lengths.min(initial=99)} to {facts.lengths.max(initial=0)} a row"
        target = targets[name]
        if target is None:
            weighed = share(facts.values.cast(pl.String).str.contains(WEIGHED_ID)) > MOST
            note = "; id:weight, but weights are not read: each pair is one id" if weighed else ""
            comment = f"{how}, {facts.values.n_unique():,} values{note}"
            proposal.add("multi_valued", name, comment, **separator)
            continue
        column, shared = target
        twin = next((n for n, lengths in placed.items() if np.array_equal(lengths, facts.lengths)), None)
        aligned = {} if twin is None or facts.lengths.max(initial=0) < 2 else {"aligned_with": proposal.name_of(twin)}
        options = {"target": proposal.name_of(column), **separator, **aligned}
        proposal.add("sequences", name, f"{how}, {shared:.1%} of them values of {column}; oldest first?", **options)
        placed[name] = facts.lengths


def _choose_user(proposal: Proposal, scalars: list[Column]) -> None:
    names = {entry.get("column", entry["name"]) for entry, _ in proposal.fields.get("categorical", ())}
    users = [c for c in scalars if c.name in names and words.names_user(c.name)]
    user = max(users, key=lambda c: len(c.counts), default=None)
    if user is not None:
        rows = len(user.present) / len(user.counts)
        proposal.user = (proposal.name_of(user.name), f"GAUC groups by it: {rows:.1f} rows each")
