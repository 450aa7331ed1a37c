"""Amazon reviews as behaviour sequences, by DIN's protocol: what will a user who bought these items buy next?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import Field

from recsys_emb.data.lists import list_column
from recsys_emb.data.schema import CategoricalField, SequenceField
from recsys_emb.data.sources._amazon_files import read_attributes, read_metadata, read_reviews, read_sequences
from recsys_emb.data.sources.base import (
    TEST,
    TRAIN,
    VALID,
    Block,
    Note,
    RawFields,
    Rejected,
    Source,
    SourceOptions,
    register,
)
from recsys_emb.errors import UserError

BLOCK_PAIRS = 1 << 16

_REVIEW_SUFFIXES = (".json", ".json.gz")


class AmazonOptions(SourceOptions):
    """Options of ``amazon``."""

    max_history: int = Field(50, ge=1, description="items of a history that are kept, the latest ones")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of the negatives")
    metadata: Path | None = Field(None, description="file of categories; absent: found beside the reviews by its name")


@dataclass(frozen=True)
class Events:
    """What each user did, user by user and in time order; E events, U users, I items.

    user: int32 [E], ascending; item: int32 [E]; starts: int64 [U + 1], where each user's events begin;
    users, items: the names, String [U] and [I]; categories: String [I], null where unknown.
    """

    user: np.ndarray
    item: np.ndarray
    starts: np.ndarray
    users: pl.Series
    items: pl.Series
    categories: pl.Series


@register("amazon")
class Amazon(Source):
    """For each user, item k + 1 after the first k (k >= 1), with one item that the user has not as the negative.

    The last item of a user is for testing, the one before for validation, the others for training ("Deep Interest
    Network for Click-Through Rate Prediction", KDD 2018, section 6.1). Positive and negative stand side by side.
    A review that stands there twice, to the second, is read once: it would be in the history that leads to it.
    Reads the 5-core reviews JSON lines with their metadata, or ``user item item ...`` lines with a JSON map from item
    to attributes.
    """

    summary = "Amazon 5-core reviews + metadata, or `user item item ...` lines + attributes, as histories for DIN"
    Options = AmazonOptions
    options: AmazonOptions

    def __init__(self, path: Path | None, options: SourceOptions) -> None:
        super().__init__(path, options)
        self._notes: list[Note] = []
        self._events_file, self._metadata = find_files(Path(path or "."), self.options.metadata)

    def fields(self) -> RawFields:
        length = self.options.max_history
        history = SequenceField(name="item_history", vocabulary="item_id", target="item_id", max_length=length)
        categories = SequenceField(
            name="category_history",
            vocabulary="category_id",
            target="category_id",
            max_length=length,
            aligned_with="item_history",
        )
        names = ("user_id", "item_id", "category_id")
        fields = tuple(CategoricalField(name=n, vocabulary=n) for n in names)
        return RawFields(categorical=fields, sequences=(history, categories), user="user_id")

    def files(self) -> list[Path]:
        return [self._events_file, self._metadata]

    def blocks(self) -> Iterator[Block]:
        rejected: list[Rejected] = []
        self._notes = []
        events = self._read(rejected)
        without = events.categories.gather(events.item).null_count()
        if without:
            self._notes.append(Note(without, len(events.item), f"events have no category in {self._metadata}"))
        positives, split = next_items(events.starts)
        negatives = sample_negatives(events, positives, self.options.seed)
        if not len(positives):
            raise UserError(f"{self._events_file}: no user has two items or more")
        for start in range(0, len(positives), BLOCK_PAIRS):
            part = slice(start, start + BLOCK_PAIRS)
            at = np.repeat(positives[part], 2)
            items = np.stack([events.item[positives[part]], negatives[part]], axis=1).ravel()
            labels = np.tile(np.array([1, 0], dtype=np.uint8), len(at) // 2)
            frame = self._frame(events, at, items)
            yield Block(frame, labels, np.repeat(split[part], 2), rejected=rejected if start == 0 else [])

    def notes(self) -> list[Note]:
        return self._notes

    def _read(self, rejected: list[Rejected]) -> Events:
        if self._events_file.suffix == ".txt":
            rows = read_sequences(self._events_file, rejected, self._notes)
            categories = read_attributes(self._metadata)
        else:
            rows = read_reviews(self._events_file, rejected, self._notes)
            categories = read_metadata(self._metadata, rows["item"].unique(), rejected)
        if rows.is_empty():
            first = f"; line {rejected[0].line}: {rejected[0].reason}" if rejected else " (is the file empty?)"
            raise UserError(f"{self._events_file}: no review could be read{first}")
        return make_events(rows, categories)

    def _frame(self, events: Events, at: np.ndarray, items: np.ndarray) -> pl.DataFrame:
        """The rows that ask for ``items`` after the events before ``at``."""
        user = events.user[at]
        lengths = np.minimum(at - events.starts[user], self.options.max_history)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        past = events.item[np.arange(offsets[-1]) + np.repeat(at - lengths - offsets[:-1], lengths)]
        return pl.DataFrame(
            {
                "user_id": events.users.gather(user),
                "item_id": events.items.gather(items),
                "category_id": events.categories.gather(items),
                "item_history": list_column(events.items.gather(past), lengths),
                "category_history": list_column(events.categories.gather(past), lengths),
            }
        )


def make_events(rows: pl.DataFrame, categories: pl.DataFrame) -> Events:
    """Groups ``rows`` (user, item in time order) by user, users and items in the order in which they occur."""
    users, user = _factorise(rows["user"])
    items, item = _factorise(rows["item"])
    order = np.argsort(user, kind="stable")
    known = items.to_frame("item").join(categories, on="item", how="left", maintain_order="left")
    starts = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(users)))])
    return Events(user[order], item[order], starts, users, items, known["category"])


def next_items(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The events to predict, int64 [P]: all but each user's first; and the split of each, uint8 [P]."""
    lengths = np.diff(starts)
    from_end = np.repeat(starts[1:], lengths) - np.arange(starts[-1])  # 1 for a user's last event
    split = np.full(starts[-1], TRAIN, dtype=np.uint8)
    split[from_end == 2] = VALID
    split[from_end == 1] = TEST
    keep = np.ones(starts[-1], dtype=bool)
    keep[starts[:-1]] = False  # nothing precedes a user's first event; every user has one
    return np.flatnonzero(keep), split[keep]


def sample_negatives(events: Events, positives: np.ndarray, seed: int) -> np.ndarray:
    """For each of ``positives`` [P] an item, int64 [P], uniform over the items that its user never has.

    Exact and without rejection: with a user's items o_0 < o_1 < ..., the r-th item that he has not is r + the number
    of j with o_j - j <= r.

    Raises:
        UserError: a user has every item.
    """
    count = len(events.items)
    owned = np.unique(events.user.astype(np.int64) * count + events.item)
    user, item = np.divmod(owned, count)
    starts = np.searchsorted(user, np.arange(len(events.users) + 1))
    free = count - np.diff(starts)
    of = events.user[positives]
    if len(of) and free[of].min() == 0:
        name = events.users[int(of[free[of].argmin()])]
        raise UserError(f"user {name!r} has all {count} items, so there is no negative to draw; leave the user out")
    rank = np.random.default_rng(seed).integers(0, free[of])
    keys = user * (count + 1) + item - (np.arange(len(owned)) - starts[user])
    return rank + np.searchsorted(keys, of.astype(np.int64) * (count + 1) + rank, side="right") - starts[of]


def find_files(path: Path, metadata: Path | None) -> tuple[Path, Path]:
    """The file of events that ``path``, a file or a folder, names, and the file of categories that goes with it.

    Raises:
        UserError: nothing there, or more than one candidate.
    """
    events = path
    if path.is_dir():
        names = sorted(p for p in path.iterdir() if _is_events(p))
        if len(names) != 1:
            found = f"{len(names)} of them: {', '.join(p.name for p in names)}" if names else "none"
            raise UserError(
                f"--input {path}: expected one reviews_*_5.json(.gz), *_5.json(.gz) or *.txt there, found {found};"
                " name the file"
            )
        events = names[0]
    elif not path.is_file():
        raise UserError(f"--input {path}: no such file or folder")
    if metadata is None:
        name = events.name.removesuffix(".gz").removesuffix(".json").removesuffix(".txt")
        name = name.removeprefix("reviews_").removesuffix("_5")
        wanted = [f"{name}_item2attributes.json"]
        if events.suffix != ".txt":
            wanted = [f"meta_{name}{suffix}" for suffix in _REVIEW_SUFFIXES]
        there = [events.parent / w for w in wanted if (events.parent / w).is_file()]
        if not there:
            raise UserError(f"no {' or '.join(wanted)} beside {events}; give it with --option metadata=FILE")
        metadata = there[0]
    elif not metadata.is_file():
        raise UserError(f"option metadata: no file {metadata}")
    return events, metadata


def _is_events(path: Path) -> bool:
    return path.suffix == ".txt" or any(path.name.endswith("_5" + suffix) for suffix in _REVIEW_SUFFIXES)


def _factorise(values: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """Distinct values in the order in which they occur, and the position of each value among them, int32."""
    codes = pa.array(values.to_arrow()).dictionary_encode()
    distinct = pl.Series(values=codes.dictionary, dtype=pl.String)
    return distinct, codes.indices.to_numpy()
