"""The Avazu format: calendar fields, dropped and kept columns, malformed lines, splits by time."""

from __future__ import annotations

import csv
import datetime
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recsys_emb.data.encode import prepare
from recsys_emb.data.options import make_source
from recsys_emb.data.sources.avazu import FIELDS
from recsys_emb.data.store import open_dataset
from recsys_emb.errors import UserError

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,"
    "device_ip,device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)


def line(click: str = "0", hour: str = "14102100", ip: str = "ddd2926e") -> str:
    site = "1005,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a"
    return f"1000009418151094273,{click},{hour},{site},{ip},44956a24,1,2,15706,320,50,1722,0,35,-1,79"


def write(folder: Path, lines: list[str], header: str = HEADER) -> Path:
    (folder / "train.csv").write_text("\n".join([header, *lines]) + "\n")
    return folder / "train.csv"


def test_fields(tmp_path: Path) -> None:
    hours = ["14102100", "14102523", "14102605", "14022912", "16022912"]
    (block,) = make_source("avazu", write(tmp_path, [line("1", h) for h in hours])).blocks()
    assert block.frame.columns == list(FIELDS)
    assert "id" not in FIELDS
    assert {"device_id", "device_ip"} <= set(FIELDS)
    good = [h for h in hours if h != "14022912"]  # 2014 has no 29th of February
    dates = [datetime.datetime.strptime(h, "%y%m%d%H") for h in good]
    assert block.frame["hour_of_day"].to_list() == [d.hour for d in dates]
    assert block.frame["weekday"].to_list() == [d.isoweekday() for d in dates]
    assert block.frame["is_weekend"].to_list() == [int(d.isoweekday() >= 6) for d in dates] == [0, 1, 1, 0]
    assert block.frame["device_ip"].to_list() == ["ddd2926e"] * 4
    assert block.frame["C20"].to_list() == ["-1"] * 4
    assert [(r.line, r.reason) for r in block.rejected] == [(5, "hour is not YYMMDDHH: '14022912'")]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line("2"), "click is not 0 or 1: '2'"),
        (line("yes"), "click is not an integer: 'yes'"),
        (line(""), "click is not 0 or 1: ''"),
        (line(hour="14102124"), "hour is not YYMMDDHH: '14102124'"),
        (line(hour=""), "hour is not YYMMDDHH: ''"),
        (line() + ",1", "25 columns, expected 24"),
        ("1,0", "2 columns, expected 24"),
    ],
)
def test_a_malformed_line_is_rejected_by_its_number(tmp_path: Path, bad: str, reason: str) -> None:
    path = write(tmp_path, [line("1"), line("0"), bad, line("1")])
    (block,) = make_source("avazu", path).blocks()
    assert block.labels.tolist() == [1, 0, 1]
    assert [(r.file, r.line, r.reason, r.text) for r in block.rejected] == [("train.csv", 4, reason, bad)]


def test_columns_may_stand_in_any_order_but_must_be_there(tmp_path: Path) -> None:
    names, values = HEADER.split(","), line("1").split(",")
    turned = write(tmp_path, [",".join(values[::-1])], ",".join(names[::-1]))
    (block,) = make_source("avazu", turned).blocks()
    assert block.labels.tolist() == [1]
    assert block.frame["device_ip"].to_list() == ["ddd2926e"]
    for header, message in [
        (HEADER.replace("C18", "c18"), "line 1: no column 'C18'"),
        (HEADER.replace("id,click", "click,click"), "line 1: a column name occurs twice"),
        ("", "the file is empty"),
    ]:
        with pytest.raises(UserError, match=message):
            list(make_source("avazu", write(tmp_path, [line()], header)).blocks())


def test_split_by_time_orders_by_hour_then_by_line(tmp_path: Path) -> None:
    hours = ["14102103", "14102101", "14102101", "14102102", "14102101"] * 20
    source = make_source(
        "avazu", write(tmp_path, [line(hour=h) for h in hours]), options=["split=time", "ratios=7,2,1"]
    )
    (block,) = source.blocks()
    order = sorted(range(100), key=lambda i: (hours[i], i))
    expected = np.zeros(100)
    expected[order[70:90]], expected[order[90:]] = 1, 2
    assert block.split.tolist() == expected.tolist()


def test_gzip(tmp_path: Path) -> None:
    plain = write(tmp_path, [line("1"), line("0")])
    (tmp_path / "train.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (a,), (b,) = (make_source("avazu", p).blocks() for p in (plain, tmp_path / "train.gz"))
    assert a.frame.equals(b.frame)


def test_real_rows(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "avazu-8k" / "train.csv"
    manifest = prepare(make_source("avazu", path, options=["split=time"]), tmp_path / "out", min_count=2)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(manifest["rows"].values()) == len(rows)
    train = open_dataset(tmp_path / "out").split("train")
    # All rows are of one hour, so the training split is the start of the file.
    assert train.labels.tolist() == [int(r["click"]) for r in rows[: len(train)]]
    counts = Counter(r["device_ip"] for r in rows[: len(train)])
    kept = sorted((v for v in counts if counts[v] >= 2), key=lambda v: (-counts[v], v))
    ids = {v: i + 1 for i, v in enumerate(kept)}
    position = FIELDS.index("device_ip")
    assert train.ids[:, position].tolist() == [ids.get(r["device_ip"], 0) for r in rows[: len(train)]]
