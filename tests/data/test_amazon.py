"""The amazon source on hand-made files of the published formats, against user-by-user loops."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import chisquare

from recsys_emb.data.encode import prepare
from recsys_emb.data.sources import _amazon_files
from recsys_emb.data.sources.amazon import make_events, sample_negatives
from recsys_emb.data.sources.base import source_registry
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError

Amazon = source_registry.get("amazon")

SEQUENCES = {
    "u1": ["a", "b", "c", "d", "e"],
    "u2": ["b", "a"],
    "u3": ["f"],
    "u4": ["c", "c", "g", "a", "b", "d", "f"],
}
CATEGORY = {"a": "Soap", "b": "Oil", "c": "Soap", "d": "Brush", "f": "Wax"}  # e and g have none


def _read(path: Path, **options: object):
    source = Amazon(path, Amazon.Options.model_validate(options))
    blocks = list(source.blocks())
    frame = pl.concat([b.frame.with_columns(label=pl.Series(b.labels), split=pl.Series(b.split)) for b in blocks])
    return source, frame, [r for b in blocks for r in b.rejected]


def _expected_positives(sequences: dict[str, list[str]], category: dict[str, str], limit: int) -> list[tuple]:
    rows = []
    for user, items in sequences.items():
        for k in range(1, len(items)):
            history = items[:k][-limit:]
            split = {len(items) - 1: 2, len(items) - 2: 1}.get(k, 0)
            rows.append((user, items[k], category.get(items[k]), history, [category.get(i) for i in history], 1, split))
    return rows


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    (tmp_path / "Tiny.txt").write_text("".join(f"{u} {' '.join(i)}\n" for u, i in SEQUENCES.items()))
    attributes = {item: ["Beauty", name] for item, name in CATEGORY.items()} | {"g": []}
    (tmp_path / "Tiny_item2attributes.json").write_text(json.dumps(attributes))
    return tmp_path


def _reviews() -> list[dict]:
    """The sequences as reviews, item by item as in the published files; times within a user rise."""
    rows = [
        {"reviewerID": user, "asin": item, "reviewText": 'good "soap"', "unixReviewTime": 1_300_000_000 + 86_400 * k}
        for user, items in SEQUENCES.items()
        for k, item in enumerate(items)
    ]
    return sorted(rows, key=lambda r: r["asin"], reverse=True)


def _write(path: Path, lines: list[str]) -> None:
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def release_2014(tmp_path: Path) -> Path:
    _write(tmp_path / "reviews_Tiny_5.json.gz", [json.dumps(r) for r in _reviews()])
    meta = [
        {"asin": i, "title": 'it\'s "it"', "related": {"bought": ["zz"]}, "categories": [["X"], ["Beauty", c]]}
        for i, c in CATEGORY.items()
    ]
    meta.append({"asin": "never-reviewed", "categories": [["X"]]})
    _write(tmp_path / "meta_Tiny.json.gz", [repr(m) for m in meta])
    return tmp_path


@pytest.fixture
def release_2018(tmp_path: Path) -> Path:
    _write(tmp_path / "Tiny_5.json", [json.dumps(r) for r in _reviews()])
    meta = [{"category": ["Beauty", c], "asin": i, "title": "t"} for i, c in CATEGORY.items()]
    meta += [{"category": [], "asin": "g"}, meta[0] | {"category": ["a second line of one item"]}]
    _write(tmp_path / "meta_Tiny.json", [json.dumps(m) for m in meta])
    return tmp_path


@pytest.mark.parametrize("form", ["lists", "release_2014", "release_2018"])
@pytest.mark.parametrize("limit", [50, 2])
def test_every_form_follows_the_protocol(form: str, limit: int, request: pytest.FixtureRequest) -> None:
    source, frame, rejected = _read(request.getfixturevalue(form), max_history=limit)
    assert rejected == []
    positives = frame.filter(pl.col("label") == 1)
    assert sorted(positives.rows(), key=str) == sorted(_expected_positives(SEQUENCES, CATEGORY, limit), key=str)
    negatives = frame.filter(pl.col("label") == 0)
    same = ["user_id", "item_history", "category_history", "split"]
    assert negatives.select(same).equals(positives.select(same))
    for user, item, category in negatives.select("user_id", "item_id", "category_id").iter_rows():
        assert item not in SEQUENCES[user]
        assert category == CATEGORY.get(item)
    fields = source.fields()
    assert [f.name for f in (*fields.categorical, *fields.sequences)] == frame.columns[:5]
    assert [s.max_length for s in fields.sequences] == [limit, limit]
    assert fields.sequences[1].aligned_with == "item_history"
    assert fields.user == "user_id"


def test_prepared_histories_share_the_ids_of_their_targets(lists: Path, tmp_path: Path) -> None:
    _, frame, _ = _read(lists)
    prepare(Amazon(lists, Amazon.Options()), tmp_path / "prepared")
    dataset = open_dataset(tmp_path / "prepared")
    keys = [f.name for f in dataset.schema.single_valued]
    for code, name in enumerate(["train", "valid", "test"]):
        rows, split = frame.filter(split=code), dataset.split(name)
        ids = dict(zip(rows["item_id"], split.ids[:, keys.index("item_id")].tolist()))
        history = split.jagged["item_history"]
        past = zip(rows["item_history"].explode(), history.values.tolist())
        assert all(ids.get(item, number) == number for item, number in past)
        assert history.offsets.diff().tolist() == rows["item_history"].list.len().to_list()
        assert (split.jagged["category_history"].offsets == history.offsets).all()


def test_reviews_of_one_second_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"reviewerID": "u", "asin": a, "unixReviewTime": t} for a, t in [("z", 5), ("m", 1), ("a", 5), ("b", 5)]]
    rows.append({"reviewerID": "v", "asin": "free", "unixReviewTime": 1})
    _write(tmp_path / "T_5.json", [json.dumps(r) for r in rows])
    _write(tmp_path / "meta_T.json", [json.dumps({"asin": "z", "category": ["c"]})])
    _, frame, _ = _read(tmp_path)
    assert frame.filter(pl.col("split") == 2)["item_history"].to_list() == [["m", "z", "a"]] * 2


def test_exact_duplicates_are_dropped_and_counted(release_2014: Path, lists: Path) -> None:
    """Nothing changes: no review is in the history of itself. A second purchase of an item, later, is no duplicate."""
    _, expected, _ = _read(release_2014 / "reviews_Tiny_5.json.gz")
    again = [json.dumps(r | {"reviewText": "edited"}) for r in _reviews()[:3]]
    _write(release_2014 / "reviews_Tiny_5.json.gz", [json.dumps(r) for r in _reviews()] + again)
    source, frame, rejected = _read(release_2014 / "reviews_Tiny_5.json.gz")
    assert frame.equals(expected)
    assert not rejected
    assert [str(n) for n in source.notes()] == [
        "3 of 18 reviews are exact duplicates of earlier ones and were left out (16.7%)",
        f"2 of 15 events have no category in {release_2014 / 'meta_Tiny.json.gz'} (13.3%)",  # e and g
    ]
    path = lists / "Tiny.txt"
    _, expected, _ = _read(path)
    path.write_text(path.read_text() + "u1  a b c d e\nu5 a b\n")
    source, frame, _ = _read(path)
    assert frame.filter(pl.col("user_id") != "u5", label=1).equals(expected.filter(label=1))
    assert [(n.count, n.total) for n in source.notes()] == [(1, 6), (2, 17)]


def test_negatives_are_uniform_over_the_other_items() -> None:
    rng = np.random.default_rng(5)
    owned = [0, 3, 4, 5, 9, 29]
    long = [owned[i] for i in rng.integers(0, len(owned), 60_000)]
    rows = pl.DataFrame({"user": ["x"] * 30 + ["y"] * len(long), "item": [str(i) for i in [*range(30), *long]]})
    events = make_events(rows, pl.DataFrame(schema={"item": pl.String, "category": pl.String}))
    drawn = sample_negatives(events, np.arange(31, len(rows)), seed=1)
    counts = np.bincount(drawn, minlength=30)
    assert (counts[owned] == 0).all()
    assert chisquare(np.delete(counts, owned)).pvalue > 1e-4
    again, other = (sample_negatives(events, np.arange(31, len(rows)), seed=s) for s in (1, 2))
    assert (again == drawn).all()
    assert (other != drawn).mean() > 0.9


def test_negatives_of_many_users_against_sets() -> None:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"user": rng.integers(0, 300, 5000), "item": rng.integers(0, 40, 5000)}).cast(pl.String)
    events = make_events(rows, pl.DataFrame(schema={"item": pl.String, "category": pl.String}))
    drawn = sample_negatives(events, np.arange(5000), seed=3)
    has = rows.group_by("user").agg("item").rows_by_key("user", unique=True)
    users, items = events.users.gather(events.user), events.items.gather(drawn)
    assert all(item not in has[user][0] for user, item in zip(users, items))
    assert len(set(items)) == 40


def test_bad_lines_are_rejected_with_their_numbers(
    release_2014: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = [json.dumps(r) for r in _reviews()]
    bad = ["{not json", json.dumps({"asin": "a", "unixReviewTime": 1}), json.dumps(_reviews()[0] | {"asin": 5}), "[1]"]
    _write(tmp_path / "reviews_Tiny_5.json.gz", [*good[:3], *bad[:2], "", *good[3:], *bad[2:]])
    monkeypatch.setattr(_amazon_files, "CHUNK_BYTES", 300)  # lines are cut across chunks
    _, frame, rejected = _read(release_2014)
    assert frame["label"].sum() == len(_expected_positives(SEQUENCES, CATEGORY, 50))
    assert [r.line for r in rejected] == [4, 5, len(good) + 4, len(good) + 5]
    assert rejected[1].reason == "no 'reviewerID'"
    assert {r.file for r in rejected} == {"reviews_Tiny_5.json.gz"}


def test_metadata_is_never_executed(release_2014: Path, tmp_path: Path) -> None:
    meta = (
        "{'asin': 'a', 'categories': [['Soap']]}\n"
        "{'asin': 'b', 'categories': [[__import__('os').getcwd()]]}\n"
        "{'asin': 'c', 'categories': 'Soap'}\n"
        "{'asin': 'd', 'categories': [[5]]}\n"
    )
    (tmp_path / "meta_Tiny.json.gz").write_bytes(gzip.compress(meta.encode()))
    _, frame, rejected = _read(release_2014)
    assert [r.line for r in rejected] == [2, 3, 4]
    assert frame["category_id"].drop_nulls().unique().to_list() == ["Soap"]


def test_list_lines_without_items(lists: Path) -> None:
    with open(lists / "Tiny.txt", "a") as file:
        file.write("\nlonely\nu9  a   b \r\n")
    _, frame, rejected = _read(lists)
    assert [(r.line, r.text) for r in rejected] == [(6, "lonely")]
    assert frame.filter(user_id="u9", label=1)["item_history"].to_list() == [["a"]]


def _unlink(name: str):
    return lambda folder: (folder / name).unlink()


def _put(name: str, text: str):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_unlink("Tiny.txt"), "found none"),
        (_put("Other.txt", "u a"), "found 2 of them: Other.txt, Tiny.txt"),
        (_unlink("Tiny_item2attributes.json"), "no Tiny_item2attributes.json beside .* --option metadata=FILE"),
        (_put("Tiny_item2attributes.json", "{"), "not JSON"),
        (_put("Tiny_item2attributes.json", '{"a": "Soap"}'), "a JSON map from item to a list"),
        (_put("Tiny.txt", ""), "no review could be read"),
        (_put("Tiny.txt", "u\n"), "line 1: no items after the user"),
        (_put("Tiny.txt", "u a\nv b\n"), "no user has two items or more"),
        (_put("Tiny.txt", "u a b\nv b\n"), "user 'u' has all 2 items"),
    ],
)
def test_mistakes_are_one_line(lists: Path, damage, message: str) -> None:
    damage(lists)
    with pytest.raises(UserError, match=message) as error:
        _read(lists)
    assert "\n" not in str(error.value)


def test_files_by_name(lists: Path, release_2014: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere.json"
    (tmp_path / "Tiny_item2attributes.json").rename(other)
    _, frame, _ = _read(tmp_path / "Tiny.txt", metadata=str(other))
    assert frame["category_id"].null_count() < len(frame)
    with pytest.raises(UserError, match="no such file or folder"):
        _read(tmp_path / "absent.txt")
    with pytest.raises(UserError, match=r"no file .*absent\.json"):
        _read(tmp_path / "Tiny.txt", metadata=str(tmp_path / "absent.json"))


def test_truncated_gzip(release_2014: Path) -> None:
    path = release_2014 / "reviews_Tiny_5.json.gz"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"^[^\n]*gzip file is truncated[^\n]*$"):
        _read(release_2014)


@pytest.mark.skipif("RECSYS_EMB_DATA" not in os.environ, reason="RECSYS_EMB_DATA is not set")
def test_real_sequences_become_the_positives_of_ctr_parquet() -> None:
    folder = Path(os.environ["RECSYS_EMB_DATA"]) / "amazon-beauty"
    _, frame, rejected = _read(folder / "Beauty.txt")
    assert rejected == []
    assert len(frame) == 352_278
    assert np.bincount(frame["split"]).tolist() == [262_826, 44_726, 44_726]
    fields = frame.columns[:5]
    ours = frame.filter(label=1).select(*fields, "split")
    expected = pl.read_parquet(folder / "ctr.parquet").filter(label=1)
    codes = {"train": 0, "valid": 1, "test": 2}
    expected = expected.select(
        pl.col(fields[:3]).cast(pl.String),
        pl.col(fields[3:]).cast(pl.List(pl.String)),
        pl.col("split").cast(pl.String).replace_strict(codes, return_dtype=pl.UInt8),
    )
    order = ["user_id", "item_id"]  # no user has an item twice in this set
    assert ours.sort(order).equals(expected.sort(order))
    has = frame.filter(label=1).select("user_id", "item_id")
    has = pl.concat([has, frame.select("user_id", pl.col("item_history").alias("item_id")).explode("item_id")])
    assert frame.filter(label=0).join(has, on=["user_id", "item_id"], how="semi").is_empty()
